"""The Thinker service: messages in, messages out; every decision is made elsewhere.

Think        one request a call        ThinkStream   many requests a call, each of which fails or is cancelled alone
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable

import grpc

from protos import ctm_bundle_pb2 as bundle_pb2
from protos import ctm_serving_pb2 as pb
from serving import status, wire
from serving.calls import LOST, Method, ServicerContext, add_service, deadline, sound
from serving.errors import InvalidRequest, ServingError, Unavailable
from serving.events import Event, Failure, Tick
from serving.mismatch import quote
from serving.models import Models, Served
from serving.outbox import Outbox
from serving.request import Request

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["Thinker"].full_name
Flight = tuple[Served, Request, Outbox]
Submit = Callable[[pb.ThinkRequest, float], Flight]

_LARGE = 2**19
"""Bytes of ticks after which a message goes out: those of many rows could make one larger than a caller takes."""


class Thinker:
    """Serves the models it is given. A request that is no message of its kind comes in as None (see `calls.py`).

    Args:
        max_rows: of one request.
        max_links: of one row's chain.
        max_stream_requests: in flight on one ThinkStream call; beyond, the call's commands wait to be read.
        on_refusal: told of every request that is refused before it waits, with the model and version that it asked
            for, or with "" and 0 when there are no such.
    """

    def __init__(
        self,
        models: Models,
        *,
        max_rows: int,
        max_links: int,
        max_stream_requests: int,
        on_refusal: Callable[[str, int, ServingError], None],
    ) -> None:
        self._models = models
        self._max_rows, self._max_links = max_rows, max_links
        self._max_stream_requests = max_stream_requests
        self._on_refusal = on_refusal
        self._readers: set[asyncio.Task[None]] = set()

    async def Think(self, request: pb.ThinkRequest | None, context: ServicerContext) -> None:
        try:
            served, asked, outbox = self.submit(sound(request), deadline(context))
        except ServingError as error:
            await status.abort(context, error)
        try:
            while events := await outbox.take():
                last = events[-1]
                for message in messages(asked.request_id, events[:-1] if isinstance(last, Failure) else events, served):
                    await context.write(message)
                if isinstance(last, Failure):
                    await status.abort(context, last.error)
        except LOST:
            log.debug("caller lost", extra={"request_id": asked.request_id})
        finally:  # whichever way the call ends; an abort or a CancelledError goes on from here
            served.runner.cancel(asked)

    async def ThinkStream(
        self, request_iterator: AsyncIterator[pb.ThinkCommand | None], context: ServicerContext
    ) -> None:
        if not any(served.runner.accepting for served in self._models):
            # The call as a whole, so that a balancer can take it elsewhere; one that goes on fails request by request.
            await status.abort(context, Unavailable("the server takes no requests now"))
        call = _StreamCall(self.submit, context, self._max_stream_requests)
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(call.read(request_iterator, tasks))
                self._readers.add(reader)
                reader.add_done_callback(self._readers.discard)
        except* LOST:
            log.debug("caller of a stream lost")

    def hang_up(self) -> None:
        """Read no more commands: every ThinkStream call ends when what it runs has been answered."""
        for reader in self._readers:
            reader.cancel()

    async def ListModels(self, request: pb.ListModelsRequest | None, context: ServicerContext) -> pb.ListModelsResponse:
        return listed(self._models)

    async def GetModel(self, request: pb.GetModelRequest | None, context: ServicerContext) -> bundle_pb2.Manifest:
        try:
            wanted = sound(request)
            return self._models.find(wanted.model, wanted.version).bundle.manifest
        except ServingError as error:
            await status.abort(context, error)

    def submit(self, message: pb.ThinkRequest, call_deadline: float) -> Flight:
        """Check a request and hand it to its model's runner.

        Raises:
            ServingError: it was refused; whoever counts refusals has been told.
        """
        name, version = "", 0
        try:
            served = self._models.find(message.model, message.version)
            name, version = served.bundle.name, served.bundle.version
            asked = wire.parse_request(
                message,
                served.bundle,
                max_rows=self._max_rows,
                max_links=self._max_links,
                arrival=time.monotonic(),
                call_deadline=call_deadline,
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
        self._in_flight: dict[str, Flight] = {}
        self._writing = asyncio.Lock()  # gRPC takes one message at a time

    async def read(self, commands: AsyncIterator[pb.ThinkCommand | None], tasks: asyncio.TaskGroup) -> None:
        """Carry out commands until the caller has no more."""
        async for command in commands:
            kind = command.WhichOneof("command") if command is not None else None
            if command is None or kind is None:
                await self._fail("", InvalidRequest("got a command of no kind, expected think or cancel"))
            elif kind == "think":
                await self._think(command.think, tasks)
            else:
                self._cancel(command.cancel.request_id)

    async def _think(self, message: pb.ThinkRequest, tasks: asyncio.TaskGroup) -> None:
        """Begin a request; a task of its own writes its events as they come."""
        request_id = message.request_id
        if not request_id:
            return await self._fail("", InvalidRequest("a request on ThinkStream needs a request_id; got an empty one"))
        if request_id in self._in_flight:
            wrong = InvalidRequest(f"request_id {quote(request_id)} is in flight on this call")
            return await self._fail(request_id, wrong)
        await self._room.acquire()
        try:
            flight = self._submit(message, deadline(self._context))
        except ServingError as error:
            self._room.release()
            return await self._fail(request_id, error)
        self._in_flight[request_id] = flight
        # A callback, not a `finally` in the task: a task cancelled before its first breath runs none of its code.
        tasks.create_task(self._pump(*flight)).add_done_callback(lambda _: self._land(flight))
        return None

    def _cancel(self, request_id: str) -> None:
        """Cancel one request; one that has ended, or never was, is left alone: the two messages may have crossed."""
        if (flight := self._in_flight.pop(request_id, None)) is not None:
            served, asked, outbox = flight
            served.runner.cancel(asked)
            outbox.abandon()

    async def _fail(self, request_id: str, error: ServingError) -> None:
        # A long id is cut short: echoed whole, it could make the answer larger than a message may be.
        await self._write(pb.ThinkEvent(request_id=request_id[: wire.LONGEST_ID], failure=wire.failure(error)))

    async def _pump(self, served: Served, asked: Request, outbox: Outbox) -> None:
        while events := await outbox.take():
            for message in messages(asked.request_id, events, served):
                async with self._writing:
                    if outbox.abandoned:  # while this waited for its turn
                        return
                    await self._context.write(message)

    def _land(self, flight: Flight) -> None:
        served, asked, _ = flight
        served.runner.cancel(asked)
        if self._in_flight.get(asked.request_id) is flight:  # else cancelled, and the id perhaps in use again
            del self._in_flight[asked.request_id]
        self._room.release()

    async def _write(self, message: pb.ThinkEvent) -> None:
        async with self._writing:
            await self._context.write(message)


def listed(models: Models) -> pb.ListModelsResponse:
    """Every version that is served, for people to choose from."""
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
            for served in models
        ]
    )


def register(thinker: Thinker, server: grpc.aio.Server) -> None:
    """Add the service to a server."""
    methods: dict[str, Method] = {
        "Think": (thinker.Think, grpc.unary_stream_rpc_method_handler, pb.ThinkRequest),
        "ThinkStream": (thinker.ThinkStream, grpc.stream_stream_rpc_method_handler, pb.ThinkCommand),
        "ListModels": (thinker.ListModels, grpc.unary_unary_rpc_method_handler, pb.ListModelsRequest),
        "GetModel": (thinker.GetModel, grpc.unary_unary_rpc_method_handler, pb.GetModelRequest),
    }
    add_service(server, SERVICE, methods)


def messages(request_id: str, events: list[Event], served: Served) -> list[pb.ThinkEvent]:
    """Events as messages; ticks that stand together go out together, as many as a message may well hold."""
    written: list[pb.ThinkEvent] = []
    ticks: list[Tick] = []
    size = 0
    for event in events:
        if isinstance(event, Tick):
            ticks.append(event)
            size += tick_bytes(event)
            if size < _LARGE:
                continue
        if ticks:
            written.append(wire.ticks_message(request_id, ticks, served.bundle))
            ticks, size = [], 0
        if not isinstance(event, Tick):
            written.append(wire.event_message(request_id, event, served.bundle))
    if ticks:
        written.append(wire.ticks_message(request_id, ticks, served.bundle))
    return written


def tick_bytes(tick: Tick) -> int:
    """About how many bytes it takes, but for what is small."""
    prediction = 0 if tick.prediction is None else tick.prediction.nbytes
    return prediction + sum(values.nbytes for values in tick.details.values())
