"""What the measures have in common: an arm runs for a few seconds at a time and says what it did."""

import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from benchmarks.statistics import Slice

IN_FLIGHT = 64
"""Thoughts asked for and not yet answered, in every arm."""

WARM_UP_SECONDS = 0.3
TRIAL_SECONDS = 0.7

T = TypeVar("T")


class Arm(Protocol):
    """One way to answer a workload."""

    key: str
    title: str
    setting: str
    """What was found to be fastest, for people: batch 64, 2 threads."""

    def run(self, seconds: float) -> Slice:
        """Think for about this long, at least one thought."""
        ...


A = TypeVar("A", bound=Arm)


def fastest(candidates: Iterable[T], make: Callable[[T], A], seconds: float) -> A:
    """Try every candidate for a moment, keep the one with the most thoughts a second."""

    def rate(arm: A) -> float:
        arm.run(min(WARM_UP_SECONDS, seconds))
        part = arm.run(seconds)
        return part.thoughts / part.seconds

    best: tuple[float, A] | None = None
    for candidate in candidates:
        arm = make(candidate)
        found = rate(arm)
        if best is None or found > best[0]:  # who is slower goes at once: sessions own threads and memory
            best = found, arm
    assert best is not None, "there is something to try"
    return best[1]


class Stopwatch:
    """Wall and processor time since it was made, of this process."""

    def __init__(self) -> None:
        self._begin, self._cpu_begin = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begin

    @property
    def cpu_seconds(self) -> float:
        return time.process_time() - self._cpu_begin
