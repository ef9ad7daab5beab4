"""Arms a and b: batches in lockstep, as ordinary inference servers run them. A batch is answered when all of it is."""

# Shapes: B rows of a batch, T ticks, C classes.

import time
from abc import ABC, abstractmethod
from collections import deque
from itertools import product
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.arm import IN_FLIGHT, Stopwatch, fastest
from benchmarks.graphs import BoundGraphs, bind, lockstep_runtimes, open_session, runtimes
from benchmarks.statistics import Slice
from benchmarks.unrolled import ANSWER, unroll
from benchmarks.workload import Workload
from serving.bundle import Bundle
from serving.request import Array

ROW_COUNTS = (8, 16, 32, 48, 64)
"""Batch sizes that are tried; no more than are in flight."""


class Batch(NamedTuple):
    """What came of one batch."""

    ticks_used: NDArray[np.int64]
    """[B]"""
    ticks_run: int
    """By the batch; every row paid for them."""
    predictions: Array
    """[B, ..., C], the answers."""


class Lockstep(ABC):
    """IN_FLIGHT callers, each of whom asks again when answered; the oldest B are the next batch."""

    key: str
    title: str
    setting: str

    def __init__(self, workload: Workload, rows: int) -> None:
        self._workload, self._rows = workload, rows
        self._next = 0

    @abstractmethod
    def think(self, rows_B: NDArray[np.int64]) -> Batch:
        """Answer these rows of the workload."""

    def run(self, seconds: float) -> Slice:
        watch = Stopwatch()
        submitted = deque([time.perf_counter()] * IN_FLIGHT)
        latencies: list[float] = []
        rows: list[NDArray[np.int64]] = []
        batches: list[Batch] = []
        while not batches or watch.seconds < seconds:
            rows.append((self._next + np.arange(self._rows)) % len(self._workload))
            self._next += self._rows
            batches.append(self.think(rows[-1]))
            now = time.perf_counter()
            latencies += [now - submitted.popleft() for _ in range(self._rows)]
            submitted += [now] * self._rows
        elapsed, cpu = watch.seconds, watch.cpu_seconds
        ticks = sum(int(batch.ticks_used.sum()) for batch in batches)
        answers = np.concatenate([batch.predictions for batch in batches])
        correct, labelled = self._workload.correct(np.concatenate(rows), answers.argmax(-1))
        return Slice(
            seconds=elapsed,
            thoughts=len(latencies),
            ticks=ticks,
            latencies=np.array(latencies),
            cpu_seconds=cpu,
            occupancy=ticks / sum(batch.ticks_run * self._rows for batch in batches),
            correct=correct,
            labelled=labelled,
        )


class StopWithLast(Lockstep):
    """Arm b: encode, then tick until the last row of the batch is certain.

    A row's answer is its most certain tick until its own stop, as the server's is.
    """

    key, title = "b", "lockstep batches, until the last row is certain"

    def __init__(self, workload: Workload, graphs: BoundGraphs) -> None:
        super().__init__(workload, graphs.rows)
        self._graphs = graphs
        self.setting = f"batch {graphs.rows}, {graphs.runtime}"

    def think(self, rows_B: NDArray[np.int64]) -> Batch:
        graphs, workload = self._graphs, self._workload
        for name, values in workload.inputs.items():
            graphs.inputs[name][:] = values[rows_B]
        graphs.encode()
        graphs.restart()
        budget_B = workload.max_ticks[rows_B]
        ticks_used_B = np.zeros(len(rows_B), np.int64)
        best_B = np.full(len(rows_B), -1.0, np.float32)
        running_B = np.ones(len(rows_B), bool)
        tick, answers = 0, None
        while running_B.any():
            prediction, certainty_B = graphs.tick()
            tick += 1
            better_B = running_B & (certainty_B > best_B)
            answers = prediction.copy() if answers is None else answers
            answers[better_B], best_B[better_B] = prediction[better_B], certainty_B[better_B]
            stops_B = running_B & ((certainty_B >= workload.threshold) | (tick >= budget_B))
            ticks_used_B[stops_B] = tick
            running_B &= ~stops_B
        assert answers is not None, "a batch has rows, and every row ticks"
        return Batch(ticks_used_B, tick, answers)


class AllTicks(Lockstep):
    """Arm a: every row runs all T ticks in one unrolled graph, which also picks the most certain tick."""

    key, title = "a", "lockstep batches, all ticks, one unrolled graph"

    def __init__(
        self, bundle: Bundle, workload: Workload, session: ort.InferenceSession, rows: int, ticks: int
    ) -> None:
        super().__init__(workload, rows)
        self._session, self._ticks = session, ticks
        program = bundle.program
        self._inputs = {spec.name: np.zeros((rows, *spec.shape), spec.dtype) for spec in program.inputs}
        self._answer = np.zeros((rows, *program.prediction.shape), program.prediction.dtype)
        self._binding = bind(session, self._inputs, {ANSWER: self._answer})
        self.setting = f"batch {rows}"

    def think(self, rows_B: NDArray[np.int64]) -> Batch:
        for name, values in self._workload.inputs.items():
            self._inputs[name][:] = values[rows_B]
        self._session.run_with_iobinding(self._binding)
        return Batch(np.full(len(rows_B), self._ticks), self._ticks, self._answer.copy())


def find_all_ticks(bundle: Bundle, workload: Workload, trial_seconds: float) -> AllTicks:
    """Arm a with the batch size and the runtime settings that are fastest."""
    ticks = bundle.manifest.ticks
    graph = unroll(bundle, ticks)
    best: list[AllTicks] = []
    for runtime in lockstep_runtimes():
        session = open_session(graph, runtime)  # all batch sizes share one: it is large
        arms = (AllTicks(bundle, workload, session, rows, ticks) for rows in ROW_COUNTS)
        best.append(fastest(arms, lambda arm: arm, trial_seconds))
        best[-1].setting += f", {runtime}"
    return fastest(best, lambda arm: arm, trial_seconds)


def find_stop_with_last(bundle: Bundle, workload: Workload, trial_seconds: float) -> StopWithLast:
    """Arm b with the batch size and the runtime settings that are fastest."""
    candidates = product(ROW_COUNTS, runtimes())
    return fastest(candidates, lambda pair: StopWithLast(workload, BoundGraphs(bundle, *pair)), trial_seconds)
