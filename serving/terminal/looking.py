"""Where a thought looks: its attention laid out over what is drawn."""

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from serving.client import Tick
from serving.request import Array

ATTENTION = "attention"
"""The detail of a tick that says it, [heads, places]."""
LOOK = (250, 214, 60)
"""The colour of what is looked at."""


def over_places(tick: Tick, places: int) -> NDArray[np.float64]:
    """The mean of the heads' attention, 1 where it is strongest; all 0 where it is not known, or elsewhere."""
    weights = tick.details.get(ATTENTION)
    return np.zeros(places) if weights is None or weights.shape[-1] != places else _strength(weights)


def over_pixels(tick: Tick, size: tuple[int, int]) -> NDArray[np.float64]:
    """The same over the pixels of a picture, [H, W], where attention is over a square of cells.

    Args:
        size: height and width in pixels. Of n x n cells and 2n + 1 pixels, cells are the pixels at odd places, as in
            a maze; else every pixel belongs to a cell.
    """
    weights = tick.details.get(ATTENTION)
    side = 0 if weights is None else isqrt(weights.shape[-1])
    if weights is None or side * side != weights.shape[-1]:
        return np.zeros(size)
    cells = _strength(weights).reshape(side, side)
    if size == (2 * side + 1, 2 * side + 1):
        pixels = np.zeros(size)
        pixels[1::2, 1::2] = cells
        return pixels
    rows, columns = (np.arange(pixels) * side // pixels for pixels in size)
    laid_out: NDArray[np.float64] = cells[np.ix_(rows, columns)]
    return laid_out


def _strength(weights: Array) -> NDArray[np.float64]:
    mean = weights.mean(axis=0, dtype=np.float64)
    strength: NDArray[np.float64] = mean / mean.max()
    return strength
