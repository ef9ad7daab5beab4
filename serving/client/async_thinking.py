"""One request under way, for asyncio: an async iterable of its events."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Self

import grpc

from protos import ctm_serving_pb2 as pb
from serving.client.errors import Cancelled, ThinkError, from_rpc, retry_delay
from serving.client.events import Event, Result, collect, events_of
from serving.client.message import LAST_WORD_SECONDS

Call = grpc.aio.UnaryStreamCall[pb.ThinkRequest, pb.ThinkEvent]


class AsyncThinking(ABC):
    """The events of a request, in order, to be iterated over once.

    The request is cancelled on the server when its `async with` block ends, when a loop over it is left early (at the
    event loop's next turn), when the task that reads is cancelled, or by `cancel`; a loop that waits then ends with
    `Cancelled`.
    """

    _read = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncIterator[Event]:
        if self._read:
            raise RuntimeError("the events of a request are read once")
        self._read = True
        return self._events()

    @abstractmethod
    def cancel(self) -> None:
        """Stop thinking; of no effect on a request that has ended."""

    async def close(self) -> None:
        """The same, for `contextlib.aclosing` and its like."""
        self.cancel()

    aclose = close

    async def result(self) -> Result:
        """Read to the end, and gather the answers."""
        result = collect([event async for event in self])
        if result is None:
            raise ThinkError("the server ended the request without a summary")
        return result

    @abstractmethod
    def _events(self) -> AsyncIterator[Event]: ...


class CallThinking(AsyncThinking):
    """A request that has a call of its own."""

    def __init__(self, begin: Callable[[float | None], Call], *, timeout: float | None, retries: int) -> None:
        self._begin, self._retries = begin, retries
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._cancelled = asyncio.Event()
        self._call = self._ask()

    def cancel(self) -> None:
        self._cancelled.set()
        self._call.cancel()

    async def _events(self) -> AsyncIterator[Event]:
        try:
            for attempt in count():
                arrived = False
                try:
                    async for message in self._call:
                        arrived = True
                        for event in events_of(message):
                            yield event
                    return
                except grpc.aio.AioRpcError as error:
                    failure = from_rpc(error)
                except asyncio.CancelledError:
                    # gRPC raises it for a cancelled call too, which is no wish to end the task that reads.
                    if cancelled_from_outside():
                        raise
                    failure = Cancelled("the request was cancelled")
                if arrived or attempt >= self._retries or not await self._wait(retry_delay(failure, attempt)):
                    raise failure
                self._call = self._ask()
        finally:  # also when the loop over this is left early
            self._call.cancel()

    async def _wait(self, delay: float | None) -> bool:
        """Wait before asking again; False when that is no use."""
        if delay is None or (self._deadline is not None and time.monotonic() + delay >= self._deadline):
            return False
        with suppress(TimeoutError):
            await asyncio.wait_for(self._cancelled.wait(), delay)
        if self._cancelled.is_set():  # perhaps in the moment that the time was over
            raise Cancelled("cancelled while waiting to ask again")
        return True

    def _ask(self) -> Call:
        return self._begin(None if self._deadline is None else self._deadline + LAST_WORD_SECONDS - time.monotonic())


def cancelled_from_outside() -> bool:
    """Whether someone asked the running task to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
