"""Arm e: the engine stepped directly, without gRPC, threads or an event loop."""

import time
from dataclasses import dataclass
from itertools import count, product
from typing import NamedTuple

import numpy as np

from benchmarks.arm import IN_FLIGHT, Stopwatch, fastest
from benchmarks.graphs import Runtime, runtimes
from benchmarks.statistics import Slice
from benchmarks.workload import Workload
from serving.backends.onnx_runtime import OnnxRuntimeBackend
from serving.bundle import Bundle
from serving.engine import Engine, StepReport
from serving.events import Answer, Failure, Summary
from serving.request import Array, Request, StopPolicy, StreamPolicy
from serving.scheduler import Scheduler
from serving.settings import BackendConfig, EngineConfig

ANSWERS_ONLY = StreamPolicy(every=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSetting:
    """What an engine is tried with."""

    num_slots: int
    encode_rows_per_step: int
    runtime: Runtime

    @classmethod
    def default(cls) -> "EngineSetting":
        """The server's own."""
        engine, backend = EngineConfig(), BackendConfig()
        runtime = Runtime(threads=backend.intra_op_threads or runtimes()[-1].threads, spin=backend.spin)
        return cls(num_slots=engine.num_slots, encode_rows_per_step=engine.encode_rows_per_step, runtime=runtime)

    def __str__(self) -> str:
        return f"{self.num_slots} slots, encode up to {self.encode_rows_per_step} rows a step, {self.runtime}"


class _Answered(NamedTuple):
    """A thought that was counted."""

    row: int
    latency: float
    ticks_used: int
    prediction: Array


class BareEngine:
    """IN_FLIGHT thoughts in the engine, from the first run to the last: the answered are replaced before a step.

    Whoever is in flight when a run ends goes on thinking in the next one, so that every run begins and ends as full as
    a server under load. Filling the empty engine is not measured, and the time between two runs is nobody's latency.
    """

    key, title = "e", "the engine alone, without gRPC"

    def __init__(self, bundle: Bundle, workload: Workload, setting: EngineSetting) -> None:
        runtime = setting.runtime
        backend = OnnxRuntimeBackend(
            bundle.program,
            {function: bundle.read(path.name) for function, path in bundle.graphs("onnx").items()},
            setting.num_slots,
            setting.encode_rows_per_step,
            intra_op_threads=runtime.threads,
            spin=runtime.spin,
        )
        backend.warm_up()
        scheduler = Scheduler(
            num_slots=setting.num_slots,
            max_waiting=IN_FLIGHT,
            admissions_per_plan=setting.encode_rows_per_step,
            positions=bundle.program.positions,
        )
        self.setting = str(setting)
        self._num_slots = setting.num_slots
        self._engine = Engine(backend, scheduler, clock=time.monotonic)
        self._workload = workload
        self._rows = count()
        self._asked: dict[Request, tuple[int, float]] = {}  # row, and when it was asked for
        self._ran_seconds = self._resumed = 0.0
        self._stops = [
            StopPolicy(max_ticks=int(ticks), certainty_threshold=workload.threshold) for ticks in workload.max_ticks
        ]

    def run(self, seconds: float) -> Slice:
        if not self._asked:
            self._fill()
        self._resumed = time.perf_counter()
        watch = Stopwatch()
        answered: list[_Answered] = []
        row_ticks = num_ticks = 0
        while watch.seconds < seconds or not answered:
            report = self._step(answered)
            row_ticks += report.num_ticked
            num_ticks += 1
        elapsed, cpu = watch.seconds, watch.cpu_seconds
        self._ran_seconds = self._now()
        rows = np.array([thought.row for thought in answered])
        correct, labelled = self._workload.correct(
            rows, np.stack([thought.prediction for thought in answered]).argmax(-1)
        )
        return Slice(
            seconds=elapsed,
            thoughts=len(answered),
            ticks=sum(thought.ticks_used for thought in answered),
            latencies=np.array([thought.latency for thought in answered]),
            cpu_seconds=cpu,
            occupancy=row_ticks / (num_ticks * self._num_slots),
            correct=correct,
            labelled=labelled,
        )

    def _fill(self) -> None:
        """Ask for IN_FLIGHT thoughts, and think until none is left of those who met an empty engine."""
        self._resumed = time.perf_counter()
        for _ in range(IN_FLIGHT):
            self._ask()
        first = set(self._asked)
        while not first.isdisjoint(self._asked):
            self._step([])
        self._ran_seconds = self._now()

    def _step(self, answered: list[_Answered]) -> StepReport:
        """One step of the engine; whoever is answered in it asks again."""
        report = StepReport()
        self._engine.step(report)
        now = self._now()
        for request, event in report.events:
            assert not isinstance(event, Failure), f"a thought failed: {event}"
            if isinstance(event, Answer):
                assert event.prediction is not None, "nothing ends before its first tick"
                row, begin = self._asked.pop(request)
                answered.append(_Answered(row, now - begin, event.ticks_used, event.prediction))
            elif isinstance(event, Summary):
                self._ask()
        return report

    def _now(self) -> float:
        """Seconds that this engine has run; it stands still between runs."""
        return self._ran_seconds + time.perf_counter() - self._resumed

    def _ask(self) -> None:
        row = next(self._rows) % len(self._workload)
        inputs = {name: values[row : row + 1] for name, values in self._workload.inputs.items()}
        request = Request(
            request_id="", inputs=inputs, rows=1, stop=self._stops[row], stream=ANSWERS_ONLY, arrival=time.monotonic()
        )
        self._asked[request] = row, self._now()
        self._engine.submit(request)


def find_bare_engine(bundle: Bundle, workload: Workload, trial_seconds: float) -> BareEngine:
    """The engine at the settings that are fastest."""
    settings = (
        EngineSetting(num_slots=slots, encode_rows_per_step=rows, runtime=runtime)
        for slots, rows, runtime in product((32, IN_FLIGHT), (8, 16, 32), runtimes())
    )
    return fastest(settings, lambda setting: BareEngine(bundle, workload, setting), trial_seconds)
