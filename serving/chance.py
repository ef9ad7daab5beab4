"""Random numbers that depend on who asks and on nothing else: no company, no order, no machine changes them."""

import numpy as np
from numpy.typing import NDArray


def uniform(seed: int, row: int, link: int, count: int = 1) -> NDArray[np.float64]:
    """Numbers in [0, 1), [count], each a multiple of 2^-53.

    Philox counts: seed and row are its key, and each link has a range of 2^66 numbers to itself.

    Args:
        seed: in [0, 2^64).
        row, link: of the request, from 0.
    """
    key, counter = np.array([seed, row], np.uint64), np.array([0, link, 0, 0], np.uint64)
    drawn = np.random.Philox(key=key, counter=counter).random_raw(count)
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53
