"""Startup, serving, drain: the parts put together and taken down again in order.

start:  store -> backends -> engine threads -> gRPC and HTTP ports -> SERVING
drain:  NOT_SERVING -> running thoughts finish -> gRPC calls end -> engine threads end -> HTTP port closes
"""

import asyncio
import logging
import signal
import time
from functools import partial

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from serving.backends.base import Backend
from serving.backends.load import load_backend
from serving.config import ServerConfig
from serving.engine import Engine, StepReport
from serving.errors import BundleRefused
from serving.http import SidePort
from serving.inference import service as inference
from serving.inference.repository import Indexed
from serving.metrics import Metrics
from serving.models import Models, Served
from serving.rpc import SERVICE, Thinker, register
from serving.runner import Runner
from serving.scheduler import Scheduler
from serving.store import Bundle, scan

log = logging.getLogger(__name__)

_HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_LAST_CALLS_SECONDS = 5.0  # for what the drain has answered to reach its readers


class Server:
    """One process's ports, models and metrics.

    Args:
        registry: where the metrics are registered; a fresh one for each server of a process.
    """

    def __init__(self, config: ServerConfig, registry: CollectorRegistry | None = None) -> None:
        self.config = config
        self.models = Models()
        self.port = 0
        """Of gRPC, once started; the one configured, or the one the system chose for 0."""
        self.http_port = 0
        self._registry = registry or _process_registry()
        self._metrics = Metrics(self._registry)
        self._not_ready: str | None = "starting"
        self._broken: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._http = SidePort(self._registry, lambda: self._not_ready, lambda: self._broken)
        self._health = health.HealthServicer()
        self._stop = asyncio.Event()

    async def start(self) -> None:
        """Open the HTTP port, load every model, then open the gRPC port.

        Raises:
            BundleRefused: no bundle of the store may serve, or none of a model that the configuration names.
            OSError: a port is taken.
        """
        self.http_port = await self._http.start(self.config.http_address)
        await self._load_models()
        self._grpc = self._make_grpc()
        await self._grpc.start()
        for served in self.models:
            await self._set_health(served.bundle.name, serving=True)
        for name in ("", SERVICE, inference.SERVICE):
            await self._set_health(name, serving=True)
        self._not_ready = None
        log.info("serving", extra={"address": self._bound_address(), "http_port": self.http_port})

    async def run(self) -> None:
        """Start, and serve until SIGTERM or SIGINT; then drain. A second signal ends the grace at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        await self.start()
        await self._stop.wait()
        await self.drain()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            # Nothing is left to be hurried, and a signal to a process that unwinds would give it another exit status.
            signal.signal(number, signal.SIG_IGN)

    async def drain(self) -> None:
        """Finish what runs within the grace period, then close."""
        begin = time.monotonic()
        self._not_ready = "shutting down"
        await self._health.enter_graceful_shutdown()
        log.info("draining", extra={"grace_seconds": self.config.grace_seconds})
        runners = [served.runner for served in self.models]
        await asyncio.gather(*(runner.drain(self.config.grace_seconds) for runner in runners))
        self._thinker.hang_up()
        self._inference.hang_up()
        await self._grpc.stop(_LAST_CALLS_SECONDS)
        await asyncio.gather(*(runner.close() for runner in runners))
        await self._http.stop()
        log.info("stopped", extra={"seconds": round(time.monotonic() - begin, 3)})

    def _on_signal(self) -> None:
        if self._stop.is_set():
            for served in self.models:
                served.runner.end_all()
        self._stop.set()

    async def _load_models(self) -> None:
        """Serve every sound bundle; the others are reported, and keep no other from being served."""
        config = self.config
        bundles, refused = await asyncio.to_thread(scan, config.store, config.version_policy, config.models)
        for bundle in bundles:
            begin = time.monotonic()
            try:
                backend = await asyncio.to_thread(load_backend, bundle, config.backend, config.engine)
            except BundleRefused as refusal:
                refused.append(refusal)
                continue
            self.models.add(self._serve(bundle, backend))
            seconds = round(time.monotonic() - begin, 3)
            log.info("model ready", extra={"model": bundle.name, "version": bundle.version, "seconds": seconds})
        for error in refused:
            log.error("bundle refused", extra={"reason": str(error)})
        missing = sorted(set(config.models) - {served.bundle.name for served in self.models})
        if missing:
            raise BundleRefused(f"store {config.store} has no bundle that may serve {', '.join(missing)}")
        if not list(self.models):
            raise BundleRefused(f"store {config.store} has no bundle that may serve")

    def _serve(self, bundle: Bundle, backend: Backend) -> Served:
        config = self.config
        scheduler = Scheduler(
            num_slots=config.engine.num_slots,
            max_waiting=config.engine.max_waiting,
            admissions_per_plan=config.engine.encode_rows_per_step,
            positions=bundle.program.positions,
        )
        engine = Engine(
            backend,
            scheduler,
            clock=time.monotonic,
            deadline_margin_seconds=config.engine.deadline_margin_seconds,
            chain_ahead=config.engine.chain_ahead,
        )
        runner = Runner(
            f"{bundle.name}/{bundle.version}",
            engine,
            on_report=partial(self._report, bundle),
            on_death=partial(self._mark_dead, bundle),
            outbox_capacity=config.stream_buffer,
        )
        self._metrics.model_info(bundle, config.backend.kind)
        return Served(bundle, runner, config.backend.kind)

    def _make_grpc(self) -> grpc.aio.Server:
        config = self.config
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", config.max_message_bytes),
                ("grpc.so_reuseport", 0),
                # Above what is let in: else gRPC turns a burst of calls away itself, with a bare CANCELLED.
                ("grpc.server.max_pending_requests", 2 * config.max_concurrent_calls),
                ("grpc.server.max_pending_requests_hard_limit", 4 * config.max_concurrent_calls),
                # A client that vanished without a word is noticed by its missing pings, and its slots come free.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
            ],
            maximum_concurrent_rpcs=config.max_concurrent_calls,
        )
        engine = config.engine
        self._thinker = Thinker(
            self.models,
            max_rows=engine.max_rows,
            max_links=engine.max_links,
            max_stream_requests=engine.max_waiting + engine.num_slots,
            on_refusal=self._metrics.rejected,
        )
        register(self._thinker, server)
        self._inference = inference.Inference(
            self.models,
            submit=self._thinker.submit,
            counts=self._metrics.counts,
            library=_Loaded(self.models),
            ready=lambda: self._not_ready is None,
            alive=lambda: self._broken is None,
            max_rows=engine.max_rows,
            max_stream_requests=engine.max_waiting + engine.num_slots,
            version_policy=config.version_policy,
            control=config.repository_control,
            on_refusal=self._metrics.rejected,
        )
        inference.register(self._inference, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if config.reflection:
            reflection.enable_server_reflection(
                (SERVICE, inference.SERVICE, _HEALTH_SERVICE, reflection.SERVICE_NAME), server
            )
        try:
            self.port = server.add_insecure_port(config.address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {config.address}: {error}") from error
        return server

    def _bound_address(self) -> str:
        return f"{self.config.address.rpartition(':')[0]}:{self.port}"

    async def _set_health(self, service: str, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)

    def _report(self, bundle: Bundle, report: StepReport, merged: int) -> None:
        self._metrics.observe(
            bundle.name, bundle.version, report, report.num_running, report.num_waiting, self.config.engine.num_slots
        )
        if merged:
            self._metrics.merged(bundle.name, bundle.version, merged)

    def _mark_dead(self, bundle: Bundle) -> None:
        """An engine broke an invariant of its own. The others serve on until somebody restarts the process."""
        self._broken = self._not_ready = f"the engine of {bundle} has failed"
        for name in (bundle.name, "", SERVICE, inference.SERVICE):
            task = asyncio.get_running_loop().create_task(self._set_health(name, serving=False))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


class _Loaded:
    """Stands for the library, which is to come."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def load(self, name: str) -> None:
        raise BundleRefused(name)

    async def unload(self, name: str) -> None:
        raise BundleRefused(name)

    def index(self) -> list[Indexed]:
        return []


def _process_registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
