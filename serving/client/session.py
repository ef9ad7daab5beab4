"""Many requests over one ThinkStream call: each has its own events, fails alone, and is cancelled alone.

think --commands--> call --_read--> the queue of each request --> its reader
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack
from uuid import uuid4

import grpc
from numpy.typing import ArrayLike

from protos import ctm_serving_pb2 as pb
from protos import ctm_serving_pb2_grpc as pb_grpc
from serving.client.async_thinking import AsyncThinking, cancelled_from_outside
from serving.client.errors import Cancelled, ThinkError, Unavailable, from_failure, from_rpc
from serving.client.events import Event, Result, Summary, events_of
from serving.client.message import (
    AnswerOptions,
    GenerateOptions,
    SampleOptions,
    ThinkOptions,
    answer_options,
    generate_message,
    request_message,
    sample_message,
)


class Session:
    """An open call. Leaving its block ends the input and waits until every running thought has finished.

    An error inside the block cancels them instead. Events wait in memory for their readers, so that a slow one holds up
    no other.
    """

    def __init__(self, stub: "pb_grpc.ThinkerAsyncStub", *, max_in_flight: int) -> None:
        self._stub = stub
        self._room = asyncio.Semaphore(max_in_flight)
        # Written by the call's own task: a cancelled `think` would otherwise take the whole call along.
        self._commands: asyncio.Queue[pb.ThinkCommand | None] = asyncio.Queue()
        self._in_flight: dict[str, SessionThinking] = {}
        self._ended = False
        self._error: ThinkError | None = None

    async def __aenter__(self) -> Self:
        self._call = self._stub.ThinkStream(self._written())
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._call.cancel()
        self.end()
        try:
            await self._reader
        finally:
            self._call.cancel()  # of no effect unless the wait was cut short

    async def think(
        self, model: str, inputs: Mapping[str, ArrayLike], **options: Unpack[ThinkOptions]
    ) -> AsyncThinking:
        """Begin a request; waits while too many are in flight.

        Raises:
            ThinkError: the call has failed.
            RuntimeError: the session has ended.
            ValueError: its request id is in flight, or as `AsyncClient.think`. Do not use the id of a request that was
                cancelled again: what the server had sent by then would be taken for the new one's.
        """
        options["request_id"] = options.get("request_id") or uuid4().hex
        return await self._begin(request_message(model, inputs, **options))

    async def generate(
        self, model: str, prompt: str | Sequence[str], **options: Unpack[GenerateOptions]
    ) -> AsyncThinking:
        """Begin to write the text that follows a prompt, or each of several: an answer for each token, as it comes.

        Raises:
            ThinkError, RuntimeError, ValueError: as `think`.
        """
        options["request_id"] = options.get("request_id") or uuid4().hex
        return await self._begin(generate_message(model, prompt, **options))

    async def sample(self, model: str, label: ArrayLike, **options: Unpack[SampleOptions]) -> AsyncThinking:
        """Begin to draw an image of a class, by number or name, or one of each of several: an answer for each step.

        Raises:
            ThinkError, RuntimeError, ValueError: as `think`.
        """
        options["request_id"] = options.get("request_id") or uuid4().hex
        return await self._begin(sample_message(model, label, **options))

    async def answer(self, model: str, inputs: Mapping[str, ArrayLike], **options: Unpack[AnswerOptions]) -> Result:
        """As `AsyncClient.answer`, over this call."""
        async with await self.think(model, inputs, **answer_options(options)) as thinking:
            return await thinking.result()

    async def _begin(self, message: pb.ThinkRequest) -> AsyncThinking:
        request_id = message.request_id
        await self._room.acquire()
        try:
            self._check(request_id)
        except BaseException:
            self._room.release()
            raise
        thinking = self._in_flight[request_id] = SessionThinking(self, request_id)
        self._commands.put_nowait(pb.ThinkCommand(think=message))
        return thinking

    def end(self) -> None:
        """No more requests; those in flight finish."""
        if not self._ended:
            self._ended = True
            self._commands.put_nowait(None)

    def _check(self, request_id: str) -> None:
        if self._error is not None:
            raise self._error
        if self._ended:
            raise RuntimeError("the session has ended")
        if request_id in self._in_flight:
            raise ValueError(f"request_id {request_id!r} is in flight on this session")

    async def _written(self) -> AsyncIterator[pb.ThinkCommand]:
        while (command := await self._commands.get()) is not None:
            yield command

    async def _read(self) -> None:
        """Hand each message to its request, until the call ends; whoever is in flight then fails."""
        error: ThinkError = Unavailable("the server ended the call")
        try:
            async for message in self._call:
                self._deliver(message)
        except grpc.aio.AioRpcError as failure:
            error = from_rpc(failure)
        except asyncio.CancelledError:
            error = Cancelled("the session was cancelled")
            if cancelled_from_outside():
                raise
        finally:
            self._error = error
            self.end()
            for thinking in list(self._in_flight.values()):
                self._land(thinking, error)

    def _deliver(self, message: pb.ThinkEvent) -> None:
        thinking = self._in_flight.get(message.request_id)
        if thinking is None:  # cancelled: the two messages crossed
            return
        if message.WhichOneof("event") == "failure":
            self._land(thinking, from_failure(message.failure))
            return
        for event in events_of(message):
            thinking.arrived.put_nowait(event)
            if isinstance(event, Summary):
                self._land(thinking, None)

    def _land(self, thinking: "SessionThinking", last: ThinkError | None) -> None:
        del self._in_flight[thinking.request_id]
        self._room.release()
        if last is not None:
            thinking.arrived.put_nowait(last)

    def _cancel(self, thinking: "SessionThinking") -> None:
        if self._in_flight.get(thinking.request_id) is thinking:
            self._land(thinking, Cancelled("the request was cancelled"))
            self._commands.put_nowait(pb.ThinkCommand(cancel=pb.Cancel(request_id=thinking.request_id)))


class SessionThinking(AsyncThinking):
    """A request that shares a call with others."""

    def __init__(self, session: Session, request_id: str) -> None:
        self.request_id = request_id
        self.arrived: asyncio.Queue[Event | ThinkError] = asyncio.Queue()
        self._session = session

    def cancel(self) -> None:
        self._session._cancel(self)

    async def _events(self) -> AsyncIterator[Event]:
        try:
            while True:
                event = await self.arrived.get()
                if isinstance(event, ThinkError):
                    raise event
                yield event
                if isinstance(event, Summary):
                    return
        finally:  # also when the loop over this is left early
            self.cancel()
