"""What early stopping gives and costs: for a certainty threshold, the accuracy kept and the ticks spent."""
# Shapes: N rows, T ticks.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999)
NEVER = 2.0
"""A threshold beyond all certainty: every tick is run."""

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierPoint:
    """How a set of rows fares when each stops at its first tick of at least this certainty."""

    threshold: float
    accuracy: float
    mean_ticks: float
    ticks_deviation: float
    """Standard deviation of the ticks used."""
    share_certain: float
    """Share of the rows that reached the threshold before their ticks were spent."""
    whole: float | None = None
    """Share of the answers that are right at every position; None where an answer has but one."""
    bits_per_byte: float | None = None
    """Of models of text."""


def stopping(certainty_NT: Floats, threshold: float) -> tuple[Integers, Integers]:
    """When each row stops, and which tick answers.

    A row stops at its first tick whose certainty, clamped to [0, 1], is at least the threshold; else when all T ticks
    are spent. The answer is the most certain tick up to there, the earliest of equals.

    Returns:
        ticks used, in 1..T, and the index of the answering tick, in 0..T-1; both [N].
    """
    clamped_NT = np.clip(certainty_NT, 0.0, 1.0)
    ticks = clamped_NT.shape[1]
    certain_NT = clamped_NT >= threshold
    used_N = np.where(certain_NT.any(axis=1), certain_NT.argmax(axis=1) + 1, ticks)
    thought_NT = np.arange(ticks) < used_N[:, None]
    return used_N, np.where(thought_NT, clamped_NT, -1.0).argmax(axis=1)


def most_certain_accuracy(certainty_NT: Floats, correct_NT: Floats) -> float:
    """What thinking for all ticks gives: the accuracy of each row's most certain tick, the earliest of equals."""
    _, answer_N = stopping(certainty_NT, NEVER)
    return _accuracy(correct_NT, answer_N)


def frontier(
    certainty_NT: Floats,
    correct_NT: Floats,
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    whole_NT: Floats | None = None,
) -> tuple[FrontierPoint, ...]:
    """One point for each threshold.

    Args:
        correct_NT: 1 where the prediction at a tick is right, 0 where it is wrong; the share of right positions, for
            predictions that have several.
        whole_NT: 1 where a prediction is right at every position; None leaves `whole` out of the points.
    """
    return tuple(_point(certainty_NT, correct_NT, whole_NT, threshold) for threshold in thresholds)


def _point(certainty_NT: Floats, correct_NT: Floats, whole_NT: Floats | None, threshold: float) -> FrontierPoint:
    used_N, answer_N = stopping(certainty_NT, threshold)
    certain_N = np.clip(certainty_NT, 0.0, 1.0).max(axis=1) >= threshold
    return FrontierPoint(
        threshold=threshold,
        accuracy=_accuracy(correct_NT, answer_N),
        mean_ticks=float(used_N.mean()),
        ticks_deviation=float(used_N.std()),
        share_certain=float(certain_N.mean()),
        whole=None if whole_NT is None else _accuracy(whole_NT, answer_N),
    )


def _accuracy(correct_NT: Floats, answer_N: Integers) -> float:
    """Of the answering tick of each row."""
    return float(correct_NT[np.arange(len(answer_N)), answer_N].mean(dtype=np.float64))
