"""A Thinker on a real port, whose one model thinks what its input says, or another scripted one."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from scripted import PROGRAM, TICKS, ScriptedBackend, script

from protos import ctm_serving_pb2 as pb
from protos import ctm_serving_pb2_grpc as pb_grpc
from protos import open_inference_pb2_grpc as oip_grpc
from protos.ctm_bundle_pb2 import Manifest
from serving.backends.base import Backend
from serving.bundle import Bundle
from serving.engine import Engine, StepReport
from serving.errors import ServingError
from serving.inference import service as inference
from serving.inference.statistics import Counts
from serving.models import Models, Served
from serving.request import StopPolicy
from serving.rpc import Thinker, register
from serving.runner import Runner
from serving.scheduler import Scheduler
from serving.tensors import tensor_message

BUNDLE = Bundle(
    path=Path("nowhere"),
    name="script",
    version=1,
    manifest=Manifest(name="script", version=1, ticks=TICKS, tick_cap=TICKS),
    program=PROGRAM,
    labels=("zero", "one", "two"),
    stop=StopPolicy(max_ticks=TICKS, certainty_threshold=0.9),
    abstain_below=0.0,
    tick_cap=TICKS,
)
ENDLESS_TICKS = 10**9
UNBOUNDED = replace(BUNDLE, tick_cap=ENDLESS_TICKS)
"""The same model, whose thoughts may be endless: they last until somebody ends them, however long that takes."""


@dataclass
class Clock:
    """The real one, which a test may put forward."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@dataclass
class ScriptedServer:
    """What a test needs of a running server."""

    stub: "pb_grpc.ThinkerAsyncStub"
    backend: Any
    runner: Runner
    reports: list[tuple[StepReport, int]]
    refusals: list[tuple[str, int, ServingError]]
    thinker: Thinker
    address: str
    inference: "oip_grpc.GRPCInferenceServiceAsyncStub"
    """The same model, over the Open Inference Protocol."""
    clock: Clock = field(default_factory=Clock)
    """The engine's."""

    def put_forward(self, seconds: float, *, after: int) -> None:
        """Let the engine's clock jump at the end of a tick, the first being 1: what it did before took no time."""
        tick = self.backend._tick

        def tick_and_jump(*arguments: Any) -> None:
            tick(*arguments)
            if self.backend.num_ticks == after:
                self.clock.ahead += seconds

        self.backend._tick = tick_and_jump

    @property
    def num_requests(self) -> int:
        """Those that have come and have neither ended nor been cancelled."""
        return len(self.runner._outboxes)

    @property
    def merged(self) -> int:
        return sum(merged for _, merged in self.reports)

    @property
    def num_waiting(self) -> int:
        return self.reports[-1][0].num_waiting if self.reports else 0

    def ended(self) -> list[str]:
        return [end.reason.name for report, _ in self.reports for end in report.ended]


@asynccontextmanager
async def scripted_server(
    *,
    bundle: Bundle = BUNDLE,
    backend: Backend | None = None,
    num_slots: int = 4,
    max_waiting: int = 64,
    max_rows: int = 16,
    max_links: int = 64,
    max_stream_requests: int = 32,
    seconds_per_tick: float = 0.0,
    held: bool = False,
    outbox_capacity: int = 64,
    margin: float = 0.02,
    chain_ahead: int = 32,
    library: Any = None,
    control: bool = False,
    max_bytes: int = 2**24,
) -> AsyncIterator[ScriptedServer]:
    backend = backend or ScriptedBackend(num_slots, seconds_per_tick=seconds_per_tick, held=held)
    clock = Clock()
    scheduler = Scheduler(num_slots=num_slots, max_waiting=max_waiting, admissions_per_plan=8)
    engine = Engine(backend, scheduler, clock=clock, deadline_margin_seconds=margin, chain_ahead=chain_ahead)
    reports: list[tuple[StepReport, int]] = []
    refusals: list[tuple[str, int, ServingError]] = []
    counts = Counts()

    def on_report(report: StepReport, merged: int) -> None:
        reports.append((report, merged))
        counts.observe(report)

    def on_refusal(name: str, version: int, error: ServingError) -> None:
        refusals.append((name, version, error))
        if name:
            counts.refuse()

    runner = Runner(bundle.name, engine, on_report=on_report, outbox_capacity=outbox_capacity)
    models = Models()
    models.add(Served(bundle, runner, "scripted"))
    server = grpc.aio.server()
    thinker = Thinker(
        models,
        max_rows=max_rows,
        max_links=max_links,
        max_stream_requests=max_stream_requests,
        on_refusal=on_refusal,
    )
    register(thinker, server)
    second = inference.Inference(
        models,
        library=library,
        submit=thinker.submit,
        counts=lambda *_: counts,
        ready=lambda: runner.accepting,
        alive=lambda: True,
        max_rows=max_rows,
        max_bytes=max_bytes,
        max_stream_requests=max_stream_requests,
        version_policy="latest:1",
        control=control,
        on_refusal=on_refusal,
    )
    inference.register(second, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = pb_grpc.ThinkerStub(channel)
            other: Any = oip_grpc.GRPCInferenceServiceStub(channel)
            yield ScriptedServer(stub, backend, runner, reports, refusals, thinker, f"127.0.0.1:{port}", other, clock)
    finally:
        await server.stop(0)
        if isinstance(backend, ScriptedBackend):
            backend.gate.open()
        await runner.close()


def think(*rows: dict[str, NDArray[Any]], request_id: str = "", **fields: Any) -> pb.ThinkRequest:
    """A request of one script a row."""
    inputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    tensors = [tensor_message(name, values) for name, values in inputs.items()]
    return pb.ThinkRequest(request_id=request_id, model="script", inputs=tensors, **fields)


def endless(rows: int = 1, **fields: Any) -> pb.ThinkRequest:
    """A request of `UNBOUNDED` whose rows tick until somebody ends them."""
    return think(*[script([0.1])] * rows, stop=pb.StopPolicy(max_ticks=ENDLESS_TICKS), **fields)
