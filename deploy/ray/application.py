"""The Thinker service as a Ray Serve application: each replica holds the models, Ray spreads calls and replicas.

caller --gRPC--> Ray's proxy on a node --> a replica --> the model's engine, in the replica's process
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.grpc_util import RayServegRPCContext

from protos import ctm_bundle_pb2 as bundle_pb2
from protos import ctm_serving_pb2 as pb
from serving.bundle import Bundle
from serving.errors import BundleRefused, ServingError
from serving.local import LocalThinker
from serving.mismatch import listing
from serving.models import Models
from serving.rpc import listed
from serving.settings import BackendConfig, EngineConfig
from serving.status import metadata, status_code
from serving.store import scan


@serve.deployment(
    num_replicas="auto",
    autoscaling_config={"target_ongoing_requests": 32},  # a replica's slots: fewer leave gaps in its batch
    max_ongoing_requests=256,
    graceful_shutdown_timeout_s=30,
)
class Thinker:
    """One replica: every model of a store, each with its engine.

    Args:
        store: a folder of published models, at this path on every node.
        models: names of those to serve; none named means all.
        engine, backend: as the server's settings of these names.
    """

    async def __init__(
        self,
        store: str = "model_store",
        models: tuple[str, ...] = (),
        version_policy: str = "latest:1",
        engine: dict[str, Any] | None = None,
        backend: dict[str, Any] | None = None,
    ) -> None:
        kind, size = BackendConfig(**backend or {}), EngineConfig(**engine or {})
        bundles, refused = scan(Path(store), version_policy, models)
        missing = set(models) - {bundle.name for bundle in bundles}
        if missing or not bundles:
            why = "; ".join(map(str, refused))
            raise BundleRefused(f"store {store} has no bundle that may serve {listing(sorted(missing))}: {why}")
        self._models = Models()
        self._thinkers: dict[Bundle, LocalThinker] = {}
        for bundle in bundles:
            thinker = await LocalThinker(bundle, backend=kind, engine=size).__aenter__()
            self._thinkers[bundle] = thinker
            self._models.add(thinker.served)

    async def Think(
        self, request: pb.ThinkRequest, grpc_context: RayServegRPCContext
    ) -> AsyncGenerator[pb.ThinkEvent, None]:
        """As the server's; the caller who leaves has its slots freed."""
        try:
            thinker = self._thinkers[self._models.find(request.model, request.version).bundle]
            async with aclosing(thinker.think(request)) as events:
                async for event in events:
                    yield event
        except ServingError as error:
            _tell(grpc_context, error)
            raise

    async def ListModels(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        del request  # it asks for all
        return listed(self._models)

    async def GetModel(self, request: pb.GetModelRequest, grpc_context: RayServegRPCContext) -> bundle_pb2.Manifest:
        try:
            return self._models.find(request.model, request.version).bundle.manifest
        except ServingError as error:
            _tell(grpc_context, error)
            raise

    def check_health(self) -> None:
        """Called by Ray, which replaces a replica that raises here."""
        for served in self._models:
            if not served.runner.accepting:
                raise RuntimeError(f"the engine of {served.bundle} has failed")

    async def __del__(self) -> None:
        for thinker in self._thinkers.values():
            await thinker.__aexit__(None, None, None)


def _tell(context: RayServegRPCContext, error: ServingError) -> None:
    """The status that the server itself would end the call with."""
    context.set_code(status_code(error))
    context.set_details(str(error))
    context.set_trailing_metadata(list(metadata(error)))


def application(arguments: dict[str, Any]) -> Application:
    """What `serve run` builds, from the arguments of `Thinker`."""
    return Thinker.bind(**arguments)
