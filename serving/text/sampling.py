"""How the next token is drawn from a prediction."""

# Shapes: V tokens of the vocabulary, K that may be drawn.

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from serving.request import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Which tokens may be drawn, and how evenly."""

    temperature: float = 1.0
    """The prediction is divided by it; 0 takes the best token always."""
    top_k: int = 0
    """Only so many best tokens may be drawn; 0: all."""
    top_p: float = 1.0
    """Of these, only the fewest best ones that have this share of the probability, in (0, 1]."""

    def __post_init__(self) -> None:
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be a number of at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")


def draw(prediction_V: Array, sampling: Sampling, chance: float) -> int:
    """The next token.

    Args:
        prediction_V: logits, all finite. Of equal ones the first is the better.
        chance: uniform in [0, 1); the same number draws the same token.
    """
    if sampling.temperature == 0 or sampling.top_k == 1:
        return int(prediction_V.argmax())
    logits_V = prediction_V.astype(np.float64)
    allowed_K = _best(logits_V, sampling.top_k)
    logits_K = logits_V if allowed_K is None else logits_V[allowed_K]
    with np.errstate(over="ignore"):  # far below the best at a low temperature: minus infinity, and never drawn
        weights_K = np.exp((logits_K - logits_K.max()) / sampling.temperature)
    if sampling.top_p < 1:
        likely_K = _likely(weights_K, sampling.top_p)
        allowed_K = likely_K if allowed_K is None else allowed_K[likely_K]
        weights_K = weights_K[likely_K]
    shares_K = weights_K.cumsum()
    place = int(np.searchsorted(shares_K, chance * shares_K[-1], side="right"))
    if place == weights_K.size:  # chance times the sum was rounded up to the sum
        place = int(np.flatnonzero(weights_K)[-1])
    return place if allowed_K is None else int(allowed_K[place])


def _best(logits_V: NDArray[np.float64], top_k: int) -> NDArray[np.intp] | None:
    """The numbers of the best tokens in rising order; None for all."""
    if not 0 < top_k < logits_V.size:
        return None
    least = np.partition(logits_V, -top_k)[-top_k]
    above = np.flatnonzero(logits_V > least)
    equal = np.flatnonzero(logits_V == least)[: top_k - above.size]
    return np.sort(np.concatenate([above, equal]))


def _likely(weights_K: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """The places of the fewest largest weights that have the share of the sum, largest first."""
    total = weights_K.sum()
    # All that are smaller than this have less than 1 - top_p together: only the few others need sorting.
    large = np.flatnonzero(weights_K >= (1 - top_p) * total / weights_K.size)
    order = large[np.argsort(-weights_K[large], kind="stable")]
    most = int(np.searchsorted(weights_K[order].cumsum(), top_p * total)) + 1
    return order[:most]
