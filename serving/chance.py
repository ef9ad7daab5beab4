"""Random numbers that depend on who asks and on nothing else: no company, no order, no machine changes them."""

import numpy as np
from numpy.typing import NDArray


class Chance:
    """The numbers of one seed. Belongs to one thread at a time.

    Philox counts: seed and row are its key, and each link has a range of 2^66 numbers to itself.

    Args:
        seed: in [0, 2^64).
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        # Kept: numpy seeds every new one from the system's randomness, key or not, which takes most of its time.
        self._philox = np.random.Philox(key=0)

    def normal(self, row: int, link: int, count: int = 1) -> NDArray[np.float32]:
        """Standard normal numbers, [count], made of the uniform ones of this row and link: two of two (Box and Muller).

        Computed in double precision and rounded once, so that what machines make of sines and logarithms hardly shows.
        """
        half = (count + 1) // 2
        first, second = self.uniform(row, link, 2 * half).reshape(2, half)
        radius = np.sqrt(-2.0 * np.log1p(-first))  # 1 - first is in (0, 1]
        angle = 2.0 * np.pi * second
        drawn = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return drawn[:count].astype(np.float32)

    def uniform(self, row: int, link: int, count: int = 1) -> NDArray[np.float64]:
        """Numbers in [0, 1), [count], each a multiple of 2^-53; the same ones whenever they are asked for.

        Args:
            row, link: of the request, from 0.
        """
        key, counter = np.array([self._seed, row], np.uint64), np.array([0, link, 0, 0], np.uint64)
        self._philox.state = {
            "bit_generator": "Philox",
            "state": {"counter": counter, "key": key},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,  # all four are used up: the next number is the counter's first
            "has_uint32": 0,
            "uinteger": 0,
        }
        return (self._philox.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
