"""Random numbers that depend on who asks and on nothing else: no company, no order, no machine changes them."""

from threading import Lock

import numpy as np
from numpy.typing import NDArray

_PHILOX = np.random.Philox(key=0)
"""Made once: numpy seeds every new one from the system's randomness, key or not, which takes most of its time."""
_LOCK = Lock()
"""Each model draws on a thread of its own."""


def uniform(seed: int, row: int, link: int, count: int = 1) -> NDArray[np.float64]:
    """Numbers in [0, 1), [count], each a multiple of 2^-53.

    Philox counts: seed and row are its key, and each link has a range of 2^66 numbers to itself.

    Args:
        seed: in [0, 2^64).
        row, link: of the request, from 0.
    """
    key, counter = np.array([seed, row], np.uint64), np.array([0, link, 0, 0], np.uint64)
    with _LOCK:
        # All four numbers of its buffer count as taken: the first is drawn anew.
        _PHILOX.state = {
            "bit_generator": "Philox",
            "state": {"counter": counter, "key": key},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        drawn = _PHILOX.random_raw(count)
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53
