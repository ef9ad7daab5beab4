"""What a prediction says to a reader: its best classes with their scores."""

# Shapes: n predictions, P positions, C classes, k asked for.

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.events import Leading
from serving.request import Array

_FEW, _MANY = 8, 64
"""Of at least so many classes, finding the largest again and again is quicker for a few than to sort them all."""


def leading(prediction: Array, top_k: Sequence[int]) -> list[Leading | None]:
    """The best classes of each of n predictions, [n, ..., C].

    Args:
        top_k: how many of them, for each; 0 for none. More than there are classes gives all of them.
    """
    most = max(top_k, default=0)
    if most == 0:
        return [None] * len(top_k)
    wanted = [index for index, k in enumerate(top_k) if k]
    logits = prediction[wanted].reshape(len(wanted), -1, prediction.shape[-1]).astype(np.float32)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores = exponentials / exponentials.sum(axis=-1, keepdims=True)
    order = _best(scores, most)
    best = np.take_along_axis(scores, order, axis=-1)
    result: list[Leading | None] = [None] * len(top_k)
    for place, index in enumerate(wanted):
        k = top_k[index]
        result[index] = Leading(order[place, :, :k], best[place, :, :k])
    return result


def _best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The places of the k largest, [n, P, k], largest first; of equal ones the first."""
    if k > _FEW or scores.shape[-1] < _MANY:
        return np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    # To sort a vocabulary at every tick, for the sake of a few, costs more than the tick.
    left, places = scores.copy(), []
    for _ in range(k):
        places.append(left.argmax(axis=-1, keepdims=True))
        np.put_along_axis(left, places[-1], -1.0, axis=-1)
    return np.concatenate(places, axis=-1)
