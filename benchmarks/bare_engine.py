"""Arm e: the engine stepped directly, without gRPC, threads or an event loop."""

import time
from dataclasses import dataclass
from itertools import count, product

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


class BareEngine:
    """IN_FLIGHT thoughts in the engine: an answered one is replaced before the next step."""

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
        self._stops = [
            StopPolicy(max_ticks=int(ticks), certainty_threshold=workload.threshold) for ticks in workload.max_ticks
        ]

    def run(self, seconds: float) -> Slice:
        engine, watch = self._engine, Stopwatch()
        asked: dict[Request, int] = {}
        rows: list[int] = []
        answers: list[Array] = []
        latencies: list[float] = []
        ticks = row_ticks = num_ticks = 0
        for _ in range(IN_FLIGHT):
            self._ask(asked)
        while asked:
            report = StepReport()
            engine.step(report)
            now = time.monotonic()
            row_ticks += report.num_ticked
            num_ticks += 1
            more = watch.seconds < seconds or not latencies
            for request, event in report.events:
                assert not isinstance(event, Failure), f"a thought failed: {event}"
                if isinstance(event, Answer):
                    assert event.prediction is not None, "nothing ends before its first tick"
                    rows.append(asked.pop(request))
                    answers.append(event.prediction)
                    latencies.append(now - request.arrival)
                    ticks += event.ticks_used
                elif isinstance(event, Summary) and more:
                    self._ask(asked)
            if not more:
                break
        elapsed, cpu = watch.seconds, watch.cpu_seconds
        for request in asked:
            engine.cancel(request, StepReport())
        correct, labelled = self._workload.correct(np.array(rows), np.stack(answers).argmax(-1))
        return Slice(
            seconds=elapsed,
            thoughts=len(rows),
            ticks=ticks,
            latencies=np.array(latencies),
            cpu_seconds=cpu,
            occupancy=row_ticks / (num_ticks * self._num_slots),
            correct=correct,
            labelled=labelled,
        )

    def _ask(self, asked: dict[Request, int]) -> None:
        row = next(self._rows) % len(self._workload)
        inputs = {name: values[row : row + 1] for name, values in self._workload.inputs.items()}
        request = Request(
            request_id="", inputs=inputs, rows=1, stop=self._stops[row], stream=ANSWERS_ONLY, arrival=time.monotonic()
        )
        asked[request] = row
        self._engine.submit(request)


def find_bare_engine(bundle: Bundle, workload: Workload, trial_seconds: float) -> BareEngine:
    """The engine at the settings that are fastest."""
    settings = (
        EngineSetting(num_slots=slots, encode_rows_per_step=rows, runtime=runtime)
        for slots, rows, runtime in product((32, IN_FLIGHT), (8, 16, 32), runtimes())
    )
    return fastest(settings, lambda setting: BareEngine(bundle, workload, setting), trial_seconds)
