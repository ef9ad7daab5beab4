"""The Open Inference Protocol: a second front to the runners that Thinker has, for clients that exist already.

A request becomes the one that `Think` takes and is handed over as that is: same checks, same refusals, same engine.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import grpc

from protos import open_inference_pb2 as oip
from serving import rpc, status
from serving.calls import LOST, Method, ServicerContext, add_service, deadline, sound
from serving.errors import BundleRefused, InvalidRequest, ServingError
from serving.events import Failure
from serving.inference.asked import parse, version_number
from serving.inference.metadata import model_config, model_metadata, server_metadata
from serving.inference.repository import Library, index_message, model_named
from serving.inference.responses import Responses
from serving.inference.statistics import Counts
from serving.inference.stream import StreamCall, Submitted
from serving.mismatch import Mismatch
from serving.models import Models, Served

log = logging.getLogger(__name__)

T = TypeVar("T")

SERVICE = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_NO_CONTROL = "callers may load and unload models only where the server's setting repository_control is on"


class Inference:
    """Serves the models it is given. A request that is no message of its kind comes in as None (see `calls.py`).

    Args:
        submit: Thinker's.
        counts: what a model's engine has done.
        library: what is loaded.
        ready: whether requests are taken.
        alive: whether every engine runs.
        max_rows: of one request.
        max_bytes: of one response.
        max_stream_requests: in flight on one ModelStreamInfer call; beyond, the call's requests wait to be read.
        version_policy: for people.
        control: whether callers may load and unload models.
        on_refusal: told of every request that is refused before `submit` has it, as Thinker's is.
    """

    def __init__(
        self,
        models: Models,
        *,
        submit: rpc.Submit,
        counts: Callable[[str, int], Counts],
        library: Library,
        ready: Callable[[], bool],
        alive: Callable[[], bool],
        max_rows: int,
        max_bytes: int,
        max_stream_requests: int,
        version_policy: str,
        control: bool,
        on_refusal: Callable[[str, int, ServingError], None],
    ) -> None:
        self._models, self._submit_think, self._counts, self._library = models, submit, counts, library
        self._ready, self._alive = ready, alive
        self._max_rows, self._max_bytes, self._max_stream_requests = max_rows, max_bytes, max_stream_requests
        self._version_policy, self._control = version_policy, control
        self._on_refusal = on_refusal
        self._readers: set[asyncio.Task[None]] = set()

    async def ServerLive(self, request: object, context: ServicerContext) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=self._alive())

    async def ServerReady(self, request: object, context: ServicerContext) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._ready())

    async def ModelReady(
        self, request: oip.ModelReadyRequest | None, context: ServicerContext
    ) -> oip.ModelReadyResponse:
        """Whether a model takes requests; one that is not known does not."""
        try:
            wanted = sound(request)
            served = self._find(wanted.name, wanted.version)
        except InvalidRequest as error:
            await status.abort(context, error)
        except ServingError:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=served.runner.accepting)

    async def ServerMetadata(self, request: object, context: ServicerContext) -> oip.ServerMetadataResponse:
        return server_metadata()

    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest | None, context: ServicerContext
    ) -> oip.ModelMetadataResponse:
        try:
            wanted = sound(request)
            served = self._find(wanted.name, wanted.version)
        except ServingError as error:
            await status.abort(context, error)
        return model_metadata(served, [other.bundle.version for other in self._versions(wanted.name)])

    async def ModelConfig(
        self, request: oip.ModelConfigRequest | None, context: ServicerContext
    ) -> oip.ModelConfigResponse:
        try:
            wanted = sound(request)
            served = self._find(wanted.name, wanted.version)
        except ServingError as error:
            await status.abort(context, error)
        config = model_config(served, max_rows=self._max_rows, version_policy=self._version_policy)
        return oip.ModelConfigResponse(config=config)

    async def ModelStatistics(
        self, request: oip.ModelStatisticsRequest | None, context: ServicerContext
    ) -> oip.ModelStatisticsResponse:
        """What engines have done: of every model, of one, or of one version."""
        try:
            wanted = sound(request)
            newest = self._find(wanted.name, wanted.version) if wanted.name else None
        except ServingError as error:
            await status.abort(context, error)
        several = self._versions(wanted.name) if newest is None or not wanted.version else [newest]
        keys = [(served.bundle.name, served.bundle.version) for served in several]
        return oip.ModelStatisticsResponse(model_stats=[self._counts(*key).message(*key) for key in keys])

    async def ModelInfer(
        self, request: oip.ModelInferRequest | None, context: ServicerContext
    ) -> oip.ModelInferResponse:
        try:
            asked, (served, think, outbox) = self._submit(sound(request), deadline(context), streams=False)
        except ServingError as error:
            await status.abort(context, error)
        responses = Responses(asked, served, think)
        try:
            while events := await outbox.take():
                if isinstance(last := events[-1], Failure):
                    await status.abort(context, last.error)
                if (response := responses.whole(events)) is not None:
                    return response
            raise AssertionError("a request ends with a summary or a failure")
        finally:  # whichever way the call ends; an abort or a CancelledError goes on from here
            served.runner.cancel(think)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[oip.ModelInferRequest | None], context: ServicerContext
    ) -> None:
        call = StreamCall(self._submit, context, self._max_stream_requests)
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(call.read(request_iterator, tasks))
                self._readers.add(reader)
                reader.add_done_callback(self._readers.discard)
        except* LOST:
            log.debug("caller of a stream lost")

    def hang_up(self) -> None:
        """Read no more requests: every ModelStreamInfer call ends when what it runs has been answered."""
        for reader in self._readers:
            reader.cancel()

    async def RepositoryIndex(
        self, request: oip.RepositoryIndexRequest | None, context: ServicerContext
    ) -> oip.RepositoryIndexResponse:
        try:
            return index_message(self._library, only_ready=sound(request).ready)
        except ServingError as error:
            await status.abort(context, error)

    async def RepositoryModelLoad(
        self, request: oip.RepositoryModelLoadRequest | None, context: ServicerContext
    ) -> oip.RepositoryModelLoadResponse:
        name = await self._change(lambda: model_named(sound(request)), self._library.load, context)
        return oip.RepositoryModelLoadResponse(model_name=name, isLoaded=True)

    async def RepositoryModelUnload(
        self, request: oip.RepositoryModelUnloadRequest | None, context: ServicerContext
    ) -> oip.RepositoryModelUnloadResponse:
        name = await self._change(lambda: model_named(sound(request)), self._library.unload, context)
        return oip.RepositoryModelUnloadResponse(model_name=name, isUnloaded=True)

    async def _change(
        self, named: Callable[[], str], change: Callable[[str], Awaitable[None]], context: ServicerContext
    ) -> str:
        """Load or unload a model; returns its name."""
        if not self._control:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_CONTROL)
        try:
            name = _well_formed(named)
            await change(name)
        except BundleRefused as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except ServingError as error:
            await status.abort(context, error)
        return name

    def _submit(self, message: oip.ModelInferRequest, call_deadline: float, *, streams: bool = True) -> Submitted:
        name, version = "", 0
        try:
            served = self._find(message.model_name, message.model_version)
            name, version = served.bundle.name, served.bundle.version
            limits = {"max_rows": self._max_rows, "max_bytes": self._max_bytes}
            asked = _well_formed(lambda: parse(message, served.bundle, **limits, streams=streams))
        except ServingError as error:
            self._on_refusal(name, version, error)
            log.debug("request refused", extra={"request_id": message.id[:256], "reason": str(error)})
            raise
        return asked, self._submit_think(asked.think, call_deadline)

    def _find(self, name: str, version: str) -> Served:
        return self._models.find(name, _well_formed(lambda: version_number(version)))

    def _versions(self, name: str) -> list[Served]:
        """All that are served of a model, or of every model."""
        return [served for served in self._models if served.bundle.name == name or not name]


def _well_formed(read: Callable[[], T]) -> T:
    """What `read` makes of a message.

    Raises:
        InvalidRequest: it is not what it should be.
    """
    try:
        return read()
    except Mismatch as error:
        raise InvalidRequest(str(error)) from error


def register(inference: Inference, server: grpc.aio.Server) -> None:
    """Add the service to a server."""
    one, many = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    methods: dict[str, Method] = {
        "ServerLive": (inference.ServerLive, one, oip.ServerLiveRequest),
        "ServerReady": (inference.ServerReady, one, oip.ServerReadyRequest),
        "ModelReady": (inference.ModelReady, one, oip.ModelReadyRequest),
        "ServerMetadata": (inference.ServerMetadata, one, oip.ServerMetadataRequest),
        "ModelMetadata": (inference.ModelMetadata, one, oip.ModelMetadataRequest),
        "ModelConfig": (inference.ModelConfig, one, oip.ModelConfigRequest),
        "ModelStatistics": (inference.ModelStatistics, one, oip.ModelStatisticsRequest),
        "ModelInfer": (inference.ModelInfer, one, oip.ModelInferRequest),
        "ModelStreamInfer": (inference.ModelStreamInfer, many, oip.ModelInferRequest),
        "RepositoryIndex": (inference.RepositoryIndex, one, oip.RepositoryIndexRequest),
        "RepositoryModelLoad": (inference.RepositoryModelLoad, one, oip.RepositoryModelLoadRequest),
        "RepositoryModelUnload": (inference.RepositoryModelUnload, one, oip.RepositoryModelUnloadRequest),
    }
    add_service(server, SERVICE, methods)
