"""Arithmetic of the measures: one slice of a run, several slices of one arm as a row of the table."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """What one arm did in a few seconds."""

    seconds: float
    thoughts: int
    """Answered within these seconds."""
    ticks: int
    """Used by those thoughts."""
    latencies: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """Seconds from a thought's submission, or from when it should have been submitted, to its answer."""
    cpu_seconds: float | None
    """Of the process that thinks; None where it does not tell."""
    client_cpu_seconds: float | None = None
    """Of the process that asks, where it is another."""
    occupancy: float | None = None
    """Thinking rows over slots, mean over ticks, in [0, 1]."""
    correct: int = 0
    labelled: int = 0
    """Thoughts whose right answer is known."""
    rejected: int = 0
    failed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """All slices of one arm."""

    thoughts_per_second: float
    slowest: float
    fastest: float
    """Thoughts per second of the slowest and the fastest slice."""
    seconds: float
    thoughts: int
    mean_ticks: float | None
    p50_seconds: float | None
    p99_seconds: float | None
    cpu_seconds_per_thought: float | None
    client_cpu_seconds_per_thought: float | None
    occupancy: float | None
    accuracy: float | None
    rejected: int
    failed: int


def summarise(slices: Sequence[Slice]) -> Summary:
    """Totals over totals, so that a slice counts by what it did."""
    assert slices, "an arm has run at least once"
    seconds, thoughts = sum(part.seconds for part in slices), sum(part.thoughts for part in slices)
    rates = [part.thoughts / part.seconds for part in slices]
    latencies = np.concatenate([part.latencies for part in slices])
    occupancies = [(part.occupancy, part.seconds) for part in slices if part.occupancy is not None]
    return Summary(
        thoughts_per_second=thoughts / seconds,
        slowest=min(rates),
        fastest=max(rates),
        seconds=seconds,
        thoughts=thoughts,
        mean_ticks=_ratio(sum(part.ticks for part in slices), thoughts),
        p50_seconds=percentile(latencies, 50),
        p99_seconds=percentile(latencies, 99),
        cpu_seconds_per_thought=_per_thought([(part.cpu_seconds, part.thoughts) for part in slices]),
        client_cpu_seconds_per_thought=_per_thought([(part.client_cpu_seconds, part.thoughts) for part in slices]),
        occupancy=_ratio(
            sum(value * weight for value, weight in occupancies), sum(weight for _, weight in occupancies)
        ),
        accuracy=_ratio(sum(part.correct for part in slices), sum(part.labelled for part in slices)),
        rejected=sum(part.rejected for part in slices),
        failed=sum(part.failed for part in slices),
    )


def percentile(values: NDArray[np.float64], share: float) -> float | None:
    """The smallest value that at least `share` percent of the values do not exceed; None of nothing.

    A value that was met, never one between two: the p99 of a handful of thoughts is the slowest of them.
    """
    if not 0 < share <= 100:
        raise ValueError(f"share must be in (0, 100], got {share}")
    return float(np.percentile(values, share, method="inverted_cdf")) if values.size else None


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample deviation; of a single value the deviation is 0."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _per_thought(parts: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(seconds, thoughts) for seconds, thoughts in parts if seconds is not None]
    return _ratio(sum(seconds for seconds, _ in known), sum(thoughts for _, thoughts in known))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
