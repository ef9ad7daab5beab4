"""Which rows of a tick are finite, found out in one pass where all are."""

# Shapes: n rows.

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from serving.request import Array


def finite_rows(prediction: Array, certainty_n: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Where prediction, [n, ...], and certainty are finite, [n]; None when all are."""
    with np.errstate(invalid="ignore"):
        if _all_finite(prediction) and _all_finite(certainty_n):
            return None
    finite: NDArray[np.bool_] = np.isfinite(certainty_n)
    finite &= np.isfinite(prediction).reshape(len(finite), -1).all(axis=1)
    return finite


def _all_finite(values: Array) -> bool:
    """0 · x is 0 for every finite number and NaN for all others: one pass, nothing allocated but the zeros."""
    flat = values.reshape(-1)
    return bool(flat.dot(_zeros(flat.size, flat.dtype)) == 0)


@lru_cache(maxsize=128)
def _zeros(size: int, dtype: np.dtype[np.generic]) -> Array:
    return np.zeros(size, dtype)
