"""One ModelStreamInfer call: many requests in flight, each of which fails alone."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

from protos import open_inference_pb2 as oip
from serving.calls import ServicerContext, deadline, sound
from serving.errors import ServingError
from serving.events import Failure
from serving.inference.asked import Asked
from serving.inference.responses import Responses, failed
from serving.rpc import Flight
from serving.wire import LONGEST_ID

Submitted = tuple[Asked, Flight]
Submit = Callable[[oip.ModelInferRequest, float], Submitted]


class StreamCall:
    """The requests in flight on one call. Ids are for the caller, and may be left out or used again.

    Args:
        max_requests: in flight; beyond, the call's requests wait to be read.
    """

    def __init__(self, submit: Submit, context: ServicerContext, max_requests: int) -> None:
        self._submit, self._context = submit, context
        self._room = asyncio.Semaphore(max_requests)
        self._writing = asyncio.Lock()  # gRPC takes one message at a time

    async def read(self, requests: AsyncIterator[oip.ModelInferRequest | None], tasks: asyncio.TaskGroup) -> None:
        """Begin each request as it comes, until the caller has no more; a task of its own writes its responses."""
        async for request in requests:
            await self._room.acquire()
            try:
                message = sound(request)
                asked, flight = self._submit(message, deadline(self._context))
            except ServingError as error:
                self._room.release()
                await self._write(failed(_address(request or oip.ModelInferRequest()), error))
                continue
            # A callback, not a `finally` in the task: a task cancelled before its first breath runs none of its code.
            task = tasks.create_task(self._answer(_address(message), asked, flight))
            task.add_done_callback(partial(self._land, flight))

    async def _answer(self, address: oip.ModelInferRequest, asked: Asked, flight: Flight) -> None:
        served, request, outbox = flight
        responses = Responses(asked, served, request)
        while events := await outbox.take():
            for response in responses.on_the_way(events):
                await self._write(response)
            if isinstance(last := events[-1], Failure):
                await self._write(failed(address, last.error))

    def _land(self, flight: Flight, _: asyncio.Task[None]) -> None:
        served, request, _outbox = flight
        served.runner.cancel(request)
        self._room.release()

    async def _write(self, response: oip.ModelStreamInferResponse) -> None:
        async with self._writing:
            await self._context.write(response)


def _address(message: oip.ModelInferRequest) -> oip.ModelInferRequest:
    """What a failure repeats of a request: cut short, or it could be larger than a message may be."""
    name, version = message.model_name[:LONGEST_ID], message.model_version[:LONGEST_ID]
    return oip.ModelInferRequest(model_name=name, model_version=version, id=message.id[:LONGEST_ID])
