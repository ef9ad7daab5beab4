"""The client for asyncio: as the ordinary one, and sessions of many requests over one call."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import ArrayLike

from protos import ctm_bundle_pb2 as bundle_pb2
from protos import ctm_serving_pb2 as pb
from protos import ctm_serving_pb2_grpc as pb_grpc
from serving.client import channel
from serving.client.async_thinking import AsyncThinking, Call, CallThinking
from serving.client.errors import DeadlineExceeded, Unavailable, from_rpc
from serving.client.events import ModelInfo, Result, model_info
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
from serving.client.session import Session


class AsyncClient:
    """A connection to a server; make it where the event loop runs. Arguments as of `Client`."""

    def __init__(
        self,
        address: str = channel.DEFAULT_ADDRESS,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        retries: int = 0,
        balance: bool = False,
    ) -> None:
        self.address = address
        self._retries = retries
        options = channel.BALANCED if balance else channel.OPTIONS
        self._channel = (
            grpc.aio.secure_channel(address, credentials, options)
            if credentials
            else grpc.aio.insecure_channel(address, options)
        )
        # One class serves both kinds of channel; only the type stubs know two.
        self._stub = cast("pb_grpc.ThinkerAsyncStub", pb_grpc.ThinkerStub(self._channel))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; what still thinks is cancelled."""
        await self._channel.close()

    def think(self, model: str, inputs: Mapping[str, ArrayLike], **options: Unpack[ThinkOptions]) -> AsyncThinking:
        """Begin to think about the rows of `inputs`, each [rows, ...] in the model's datatype.

        Raises:
            ValueError, TypeError: an option that no server could take. What the server refuses is raised when the
                events are read.
        """
        return self._begin(request_message(model, inputs, **options), options.get("timeout"))

    def generate(self, model: str, prompt: str | Sequence[str], **options: Unpack[GenerateOptions]) -> AsyncThinking:
        """Begin to write the text that follows a prompt, or each of several: an answer for each token, as it comes.

        Raises:
            ValueError, TypeError: as `think`.
        """
        return self._begin(generate_message(model, prompt, **options), options.get("timeout"))

    def sample(self, model: str, label: ArrayLike, **options: Unpack[SampleOptions]) -> AsyncThinking:
        """Begin to draw an image of a class, by number or name, or one of each of several: an answer for each step.

        Raises:
            ValueError, TypeError: as `think`.
        """
        return self._begin(sample_message(model, label, **options), options.get("timeout"))

    async def answer(self, model: str, inputs: Mapping[str, ArrayLike], **options: Unpack[AnswerOptions]) -> Result:
        """Think, and see the answers only; the best class is named unless `top_k` says otherwise.

        Raises:
            ThinkError: the request failed.
        """
        async with self.think(model, inputs, **answer_options(options)) as thinking:
            return await thinking.result()

    def _begin(self, message: pb.ThinkRequest, timeout: float | None) -> AsyncThinking:
        def begin(remaining: float | None) -> Call:
            return self._stub.Think(message, timeout=remaining)

        return CallThinking(begin, timeout=timeout, retries=self._retries)

    def session(self, *, max_in_flight: int = 256) -> Session:
        """Many requests over one call: `async with client.session() as session`.

        Args:
            max_in_flight: requests that have not ended; beyond, `think` waits for one that does.
        """
        return Session(self._stub, max_in_flight=max_in_flight)

    async def list_models(self) -> list[ModelInfo]:
        """What is served."""
        try:
            response = await self._stub.ListModels(pb.ListModelsRequest(), timeout=channel.CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None
        return [model_info(model) for model in response.models]

    async def get_model(self, model: str, version: int = 0) -> bundle_pb2.Manifest:
        """The manifest of a model: its tensors, defaults, labels, measured quality. Version 0 is the newest."""
        try:
            request = pb.GetModelRequest(model=model, version=version)
            return await self._stub.GetModel(request, timeout=channel.CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None

    async def wait_ready(self, within: float = 30.0, *, model: str = "") -> None:
        """Wait until the server serves, or until it serves one model.

        Raises:
            Unavailable: it did not within that many seconds.
        """
        check = cast(Any, health_pb2_grpc.HealthStub(self._channel)).Check  # its type names no methods
        request = health_pb2.HealthCheckRequest(service=model)
        deadline = time.monotonic() + within
        met = "no answer"
        while (remaining := deadline - time.monotonic()) > 0:
            try:
                status = (await check(request, timeout=remaining, wait_for_ready=True)).status
            except grpc.aio.AioRpcError as error:
                failure = from_rpc(error)
                if not isinstance(failure, DeadlineExceeded):  # which says less than what came before
                    met = failure.message or failure.code.name
            else:
                if status == health_pb2.HealthCheckResponse.SERVING:
                    return
                met = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
            await asyncio.sleep(channel.POLL_SECONDS)
        raise Unavailable(channel.not_ready(model, self.address, within, met))
