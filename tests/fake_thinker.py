"""A Thinker on a real port that pretends to think: rows grow certain one after another, and errors come on demand.

Row r is certain at tick 3 + 2r; given ENDLESS ticks, never. It answers class (r + 1) % 10, but until halfway there the
class after that one leads.
"""

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from protos import ctm_bundle_pb2 as bundle_pb2
from protos import ctm_serving_pb2 as pb
from protos import ctm_serving_pb2_grpc as pb_grpc
from serving import status
from serving.errors import ServingError, UnknownModel
from serving.tensors import tensor_message
from serving.wire import failure

CLASSES = 10
TICKS = 12
ENDLESS = 10**9
"""As `max_ticks`: the thoughts go on until their client leaves, however long that takes."""

MANIFEST = bundle_pb2.Manifest(
    name="digits",
    version=3,
    ticks=TICKS,
    tick_cap=TICKS,
    inputs=[bundle_pb2.TensorSpec(name="image", datatype="FP32", shape=[1, 28, 28], minimum=0, maximum=1)],
    stop=bundle_pb2.StopDefaults(certainty_threshold=0.9),
    labels=[str(digit) for digit in range(CLASSES)],
)


def ticks_to_certain(row: int) -> int:
    return 3 + 2 * row


@dataclass(eq=False)
class FakeThinker(pb_grpc.ThinkerServicer):
    """Plays one model; remembers what it was asked and who left."""

    manifest: bundle_pb2.Manifest = field(default_factory=lambda: MANIFEST)
    seconds_per_tick: float = 0.0
    failures: list[ServingError] = field(default_factory=list)
    """The next requests fail with these, in order."""
    break_after: int | None = None
    """Requests fail after this many ticks, with `late_failure`."""
    late_failure: ServingError | None = None
    asked: list[pb.ThinkRequest] = field(default_factory=list)
    left: "queue.SimpleQueue[str]" = field(default_factory=queue.SimpleQueue)
    """Request ids whose client left, or cancelled them."""
    address: str = ""
    health: HealthServicer = field(default_factory=HealthServicer)

    def Think(self, request: pb.ThinkRequest, context: grpc.ServicerContext) -> Iterator[pb.ThinkEvent]:
        left = threading.Event()
        if not context.add_callback(left.set):  # ended before it began
            left.set()
        try:
            yield from self._thoughts(request, left)
        except ServingError as error:
            context.set_trailing_metadata(status.metadata(error))
            context.abort(status.status_code(error), str(error))

    def ThinkStream(
        self, request_iterator: Iterator[pb.ThinkCommand], context: grpc.ServicerContext
    ) -> Iterator[pb.ThinkEvent]:
        events: queue.SimpleQueue[pb.ThinkEvent | None] = queue.SimpleQueue()
        left: dict[str, threading.Event] = {}

        def think(request: pb.ThinkRequest) -> None:
            try:
                for message in self._thoughts(request, left[request.request_id]):
                    events.put(message)
            except ServingError as error:
                events.put(pb.ThinkEvent(request_id=request.request_id, failure=failure(error)))

        def read() -> None:
            threads = []
            with suppress(Exception):  # gRPC raises a bare one when the call is cancelled
                for command in request_iterator:
                    if command.HasField("cancel"):
                        left[command.cancel.request_id].set()
                        continue
                    left[command.think.request_id] = threading.Event()
                    threads.append(threading.Thread(target=think, args=[command.think]))
                    threads[-1].start()
            for thread in threads:
                thread.join()
            events.put(None)

        context.add_callback(lambda: [one.set() for one in list(left.values())])
        threading.Thread(target=read).start()
        while (message := events.get()) is not None:
            yield message

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        info = pb.ModelInfo(name=self.manifest.name, version=self.manifest.version, ticks=TICKS, backend="fake")
        return pb.ListModelsResponse(models=[info])

    def GetModel(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> bundle_pb2.Manifest:
        if request.model != self.manifest.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model!r}; there is {self.manifest.name}")
        return self.manifest

    def _thoughts(self, request: pb.ThinkRequest, left: threading.Event) -> Iterator[pb.ThinkEvent]:
        self.asked.append(request)
        try:
            yield from self._thought(request, left)
        except GeneratorExit:  # gRPC stops reading when the client leaves
            self.left.put(request.request_id)
            raise

    def _thought(self, request: pb.ThinkRequest, left: threading.Event) -> Iterator[pb.ThinkEvent]:
        if self.failures:
            raise self.failures.pop(0)
        if request.model != self.manifest.name:
            raise UnknownModel(f"no model {request.model!r}")
        every = request.stream.every if request.stream.HasField("every") else 1
        budget = request.stop.max_ticks or TICKS
        rows = list(range(request.inputs[0].shape[0]))
        answers = []
        for tick in range(1, budget + 1):
            time.sleep(self.seconds_per_tick)
            if left.is_set():
                self.left.put(request.request_id)
                return
            if every:
                ticks = [self._tick(request, row, tick) for row in rows]
                yield pb.ThinkEvent(request_id=request.request_id, ticks=pb.Ticks(ticks=ticks))
            if self.late_failure and tick == self.break_after:
                raise self.late_failure
            for row in [row for row in rows if budget != ENDLESS and tick >= min(ticks_to_certain(row), budget)]:
                rows.remove(row)
                answers.append(self._answer(request, row, tick))
                yield pb.ThinkEvent(request_id=request.request_id, answer=answers[-1])
            if not rows:
                break
        summary = pb.Summary(
            abstain_mask=[answer.abstained for answer in sorted(answers, key=lambda answer: answer.row)],
            abstentions=[int(answer.abstained) for answer in sorted(answers, key=lambda answer: answer.row)],
            ticks_used=sum(answer.ticks_used for answer in answers),
            queue_seconds=0.001,
            think_seconds=0.002,
            model=self.manifest.name,
            version=self.manifest.version,
        )
        yield pb.ThinkEvent(request_id=request.request_id, summary=summary)

    def _tick(self, request: pb.ThinkRequest, row: int, tick: int) -> pb.Tick:
        scores = _scores(row, tick)
        message = pb.Tick(row=row, tick=tick, certainty=_certainty(row, tick))
        message.top.extend(self._top(scores, request.stream.top_k))
        if request.stream.predictions:
            message.prediction.CopyFrom(tensor_message("prediction", np.log(scores)))
        for name in request.stream.details:
            message.details.append(tensor_message(name, np.full((2, 3), tick, np.float32)))
        return message

    def _answer(self, request: pb.ThinkRequest, row: int, tick: int) -> pb.Answer:
        scores, certainty = _scores(row, tick), _certainty(row, tick)
        return pb.Answer(
            row=row,
            ticks_used=tick,
            answer_tick=tick,
            certainty=certainty,
            stop_reason=pb.CERTAIN if tick >= ticks_to_certain(row) else pb.TICK_BUDGET,
            abstained=certainty < request.abstain_below,
            prediction=tensor_message("prediction", np.log(scores)),
            top=self._top(scores, request.stream.top_k),
        )

    def _top(self, scores: Any, top_k: int) -> list[pb.ClassScore]:
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [pb.ClassScore(index=index, label=self.manifest.labels[index], score=scores[index]) for index in best]


def _certainty(row: int, tick: int) -> float:
    return min(0.95, 0.95 * tick / ticks_to_certain(row))


def _scores(row: int, tick: int) -> Any:
    """The pretended softmax, [CLASSES]."""
    certainty = _certainty(row, tick)
    scores = np.full(CLASSES, (1 - certainty) / CLASSES, np.float32)
    scores[(row + (1 if tick * 2 > ticks_to_certain(row) else 2)) % CLASSES] += certainty
    return scores


@contextmanager
def served(thinker: FakeThinker) -> Iterator[FakeThinker]:
    """Serve it on a free port, written into its `address`."""
    server = grpc.server(ThreadPoolExecutor(8))
    pb_grpc.add_ThinkerServicer_to_server(thinker, server)
    health_pb2_grpc.add_HealthServicer_to_server(thinker.health, server)
    thinker.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield thinker
    finally:
        server.stop(0).wait()
