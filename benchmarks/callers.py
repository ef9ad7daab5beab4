"""Requests of a workload over gRPC: as little work as possible in the client, which shares the machine's cores."""

import asyncio
from abc import ABC, abstractmethod
from types import TracebackType
from typing import NamedTuple, Self, cast

import grpc
import numpy as np

from benchmarks.workload import Workload
from protos import ctm_serving_pb2 as pb
from protos import ctm_serving_pb2_grpc as pb_grpc
from serving.client.message import request_message
from serving.request import StopReason

REJECTED = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)


class Reply(NamedTuple):
    """How one request ended."""

    answer: pb.Answer | None
    """None when there is none."""
    rejected: bool = False
    """The server said that it has too much to do."""


class Caller(ABC):
    """Asks for one row of a workload at a time; many at once."""

    def __init__(self, address: str, workload: Workload, *, every_tick: bool) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        # One class serves both kinds of channel; only the type stubs know two.
        self._stub = cast("pb_grpc.ThinkerAsyncStub", pb_grpc.ThinkerStub(self._channel))
        # Without certainty as a reason to stop, the row's own budget stops it; else the bundle's defaults do.
        by_budget = () if workload.stops_by_itself else (StopReason.CERTAIN,)
        self._messages = [
            request_message(
                workload.model,
                {name: values[row : row + 1] for name, values in workload.inputs.items()},
                threshold=workload.threshold if workload.stops_by_itself else None,
                max_ticks=int(workload.max_ticks[row]),
                disabled=by_budget,
                every=None if every_tick else 0,
            )
            for row in range(len(workload))
        ]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    @abstractmethod
    async def ask(self, row: int) -> Reply:
        """Ask for a row, and read to the end."""


class ThinkCaller(Caller):
    """A Think call for each request."""

    async def ask(self, row: int) -> Reply:
        answer = None
        try:
            async for event in self._stub.Think(self._messages[row]):
                if event.WhichOneof("event") == "answer":
                    answer = event.answer
        except grpc.aio.AioRpcError as error:
            return Reply(None, rejected=error.code() in REJECTED)
        return Reply(answer)


class StreamCaller(Caller):
    """All requests over one ThinkStream call."""

    def __init__(self, address: str, workload: Workload, *, every_tick: bool) -> None:
        super().__init__(address, workload, every_tick=every_tick)
        self._waiting: dict[str, asyncio.Future[Reply]] = {}
        self._answers: dict[str, pb.Answer] = {}
        self._asked = 0
        self._writing = asyncio.Lock()  # gRPC takes one message at a time

    async def __aenter__(self) -> Self:
        self._call = self._stub.ThinkStream()
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel()
        await asyncio.wait([self._reader])
        await super().__aexit__(kind, error, trace)

    async def ask(self, row: int) -> Reply:
        self._asked += 1
        request_id = str(self._asked)
        command = pb.ThinkCommand(think=self._messages[row])
        command.think.request_id = request_id
        ended: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = ended
        async with self._writing:
            await self._call.write(command)
        return await ended

    async def _read(self) -> None:
        async for event in self._call:
            match event.WhichOneof("event"):
                case "answer":
                    self._answers[event.request_id] = event.answer
                case "summary":
                    self._end(event.request_id, Reply(self._answers.pop(event.request_id, None)))
                case "failure":
                    self._end(event.request_id, Reply(None, rejected=event.failure.code == pb.RESOURCE_EXHAUSTED))

    def _end(self, request_id: str, reply: Reply) -> None:
        ended = self._waiting.pop(request_id)
        if not ended.done():
            ended.set_result(reply)


def predicted(answer: pb.Answer) -> int:
    """The answer's best class, of a prediction with one position."""
    return int(np.frombuffer(answer.prediction.data, "<f4").argmax())
