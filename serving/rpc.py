"""The Thinker service: messages in, messages out; every decision is made elsewhere.

Think        one request a call        ThinkStream   many requests a call, each of which fails or is cancelled alone
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from math import inf
from typing import Any

import grpc

from protos import ctm_bundle_pb2 as bundle_pb2
from protos import ctm_serving_pb2 as pb
from protos import ctm_serving_pb2_grpc as pb_grpc
from serving import status, wire
from serving.errors import InvalidRequest, ServingError
from serving.events import Event, Failure, Tick
from serving.models import Models, Served
from serving.outbox import Outbox
from serving.request import Request

log = logging.getLogger(__name__)

ServicerContext = grpc.aio.ServicerContext[Any, Any]
Submit = Callable[[pb.ThinkRequest, float], tuple[Served, Request, Outbox]]


class Thinker(pb_grpc.ThinkerServicer):
    """Serves the models it is given.

    Args:
        max_rows: of one request.
        max_stream_requests: in flight on one ThinkStream call; beyond, the call's commands wait to be read.
        on_refusal: told of every request that is refused before it waits, with the model and version that it asked
            for, or with "" and 0 when there are no such.
    """

    def __init__(
        self,
        models: Models,
        *,
        max_rows: int,
        max_stream_requests: int,
        on_refusal: Callable[[str, int, ServingError], None],
    ) -> None:
        self._models = models
        self._max_rows = max_rows
        self._max_stream_requests = max_stream_requests
        self._on_refusal = on_refusal

    async def Think(self, request: pb.ThinkRequest, context: ServicerContext) -> AsyncIterator[pb.ThinkEvent]:
        asked = None
        try:
            served, asked, outbox = self._submit(request, _deadline(context))
        except ServingError as error:
            await status.abort(context, error)
        try:
            while events := await outbox.take():
                if isinstance(last := events[-1], Failure):
                    await status.abort(context, last.error)
                for message in _messages(asked.request_id, events, served):
                    yield message
        finally:  # whichever way the call ends, and CancelledError goes on from here
            served.runner.cancel(asked)

    async def ThinkStream(  # type: ignore[override]  # the generated base knows no handlers that write
        self, request_iterator: AsyncIterator[pb.ThinkCommand], context: ServicerContext
    ) -> None:
        call = _StreamCall(self._submit, context, self._max_stream_requests)
        async with asyncio.TaskGroup() as tasks:
            async for command in request_iterator:
                match command.WhichOneof("command"):
                    case "think":
                        await call.think(command.think, tasks)
                    case "cancel":
                        call.cancel(command.cancel.request_id)
                    case _:
                        await call.fail("", InvalidRequest("a command is think or cancel; got neither"))

    async def ListModels(self, request: pb.ListModelsRequest, context: ServicerContext) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(
            models=[
                pb.ModelInfo(
                    name=served.bundle.name,
                    version=served.bundle.version,
                    family=served.bundle.manifest.family,
                    task=served.bundle.manifest.task,
                    description=served.bundle.manifest.description,
                    ticks=served.bundle.manifest.ticks,
                    backend=served.backend,
                )
                for served in self._models
            ]
        )

    async def GetModel(self, request: pb.GetModelRequest, context: ServicerContext) -> bundle_pb2.Manifest:
        try:
            return self._models.find(request.model, request.version).bundle.manifest
        except ServingError as error:
            await status.abort(context, error)

    def _submit(self, message: pb.ThinkRequest, call_deadline: float) -> tuple[Served, Request, Outbox]:
        name, version = "", 0
        try:
            served = self._models.find(message.model, message.version)
            name, version = served.bundle.name, served.bundle.version
            asked = wire.parse_request(
                message, served.bundle, max_rows=self._max_rows, arrival=time.monotonic(), call_deadline=call_deadline
            )
            outbox = served.runner.submit(asked)
        except ServingError as error:
            self._on_refusal(name, version, error)
            log.debug("request refused", extra={"request_id": message.request_id[:256], "reason": str(error)})
            raise
        log.debug("request", extra={"request_id": asked.request_id, "model": served.bundle.name, "rows": asked.rows})
        return served, asked, outbox


class _StreamCall:
    """The requests in flight on one ThinkStream call."""

    def __init__(self, submit: Submit, context: ServicerContext, max_requests: int) -> None:
        self._submit, self._context = submit, context
        self._room = asyncio.Semaphore(max_requests)
        self._in_flight: dict[str, tuple[Served, Request, Outbox]] = {}
        self._writing = asyncio.Lock()  # gRPC takes one message at a time

    async def think(self, message: pb.ThinkRequest, tasks: asyncio.TaskGroup) -> None:
        """Begin a request; a task of its own writes its events as they come."""
        request_id = message.request_id
        if not request_id:
            return await self.fail("", InvalidRequest("a request on ThinkStream needs a request_id; got an empty one"))
        if request_id in self._in_flight:
            return await self.fail(request_id, InvalidRequest(f"request_id {request_id!r} is in flight on this call"))
        await self._room.acquire()
        try:
            flight = self._submit(message, _deadline(self._context))
        except ServingError as error:
            self._room.release()
            return await self.fail(request_id, error)
        self._in_flight[request_id] = flight
        # A callback, not a `finally` in the task: a task cancelled before its first breath runs none of its code.
        tasks.create_task(self._pump(*flight)).add_done_callback(lambda _: self._land(flight))
        return None

    def cancel(self, request_id: str) -> None:
        """Cancel one request; one that has ended, or never was, is left alone: the two messages may have crossed."""
        if (flight := self._in_flight.get(request_id)) is not None:
            served, asked, outbox = flight
            served.runner.cancel(asked)
            outbox.abandon()

    async def fail(self, request_id: str, error: ServingError) -> None:
        await self._write(pb.ThinkEvent(request_id=request_id, failure=wire.failure(error)))

    async def _pump(self, served: Served, asked: Request, outbox: Outbox) -> None:
        while events := await outbox.take():
            for message in _messages(asked.request_id, events, served):
                await self._write(message)

    def _land(self, flight: tuple[Served, Request, Outbox]) -> None:
        served, asked, _ = flight
        served.runner.cancel(asked)
        self._in_flight.pop(asked.request_id, None)
        self._room.release()

    async def _write(self, message: pb.ThinkEvent) -> None:
        async with self._writing:
            await self._context.write(message)


def _deadline(context: ServicerContext) -> float:
    """When the caller stops waiting, in monotonic seconds; `inf` when it never does."""
    remaining = context.time_remaining()
    return inf if remaining is None else time.monotonic() + remaining


def _messages(request_id: str, events: list[Event], served: Served) -> list[pb.ThinkEvent]:
    """Events as messages; ticks that stand together go out together."""
    messages: list[pb.ThinkEvent] = []
    ticks: list[Tick] = []
    for event in events:
        if isinstance(event, Tick):
            ticks.append(event)
            continue
        if ticks:
            messages.append(wire.ticks_message(request_id, ticks, served.bundle))
            ticks = []
        messages.append(wire.event_message(request_id, event, served.bundle))
    if ticks:
        messages.append(wire.ticks_message(request_id, ticks, served.bundle))
    return messages
