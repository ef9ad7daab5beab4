"""Startup, serving, drain: the parts put together and taken down again in order.

start:  HTTP port -> bundles fetched -> models of the store -> gRPC port -> SERVING
drain:  NOT_SERVING -> balancers look elsewhere -> running thoughts finish -> gRPC calls end -> engine threads end
        -> HTTP port closes
"""

import asyncio
import logging
import os
import signal
import time
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from serving.config import ServerConfig
from serving.fetch import fetch
from serving.http import SidePort
from serving.inference import service as inference
from serving.library import Library
from serving.metrics import Metrics
from serving.rpc import SERVICE, Thinker, register

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
        self.port = 0
        """Of gRPC, once started; the one configured, or the one the system chose for 0."""
        self.http_port = 0
        self._registry = registry or _process_registry()
        self._metrics = Metrics(self._registry)
        self.library = Library(config, self._metrics, self._announce)
        self._phase: str | None = "starting"
        self._tasks: set[asyncio.Task[None]] = set()
        self._http = SidePort(self._registry, self._not_ready, lambda: self.library.stage.broken)
        self._health = health.HealthServicer()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def start(self) -> None:
        """Open the HTTP port, fetch bundles, load every model, then open the gRPC port.

        Raises:
            BundleRefused: no bundle of the store may serve, or none of a model that the configuration names; or one
                cannot be fetched.
            InstallationLacks: no bundle can be served with what is installed.
            OSError: a port is taken.
        """
        self.http_port = await self._http.start(self.config.http_address)
        for source in self.config.fetch:
            await asyncio.to_thread(fetch, source, self.config.store)
        await self.library.start()
        self._grpc = self._make_grpc()
        await self._grpc.start()
        self._phase = None
        for name in {served.bundle.name for served in self.library.models}:
            await self._set_health(name)
        log.info("serving", extra={"address": self._bound_address(), "http_port": self.http_port})

    async def run(self) -> None:
        """Start, and serve until SIGTERM or SIGINT; then drain. A second signal ends delay and grace at once.

        A signal that comes before anything is served ends the process there and then.
        """
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
        """Say that this server goes, take requests for the delay, finish what runs within the grace, then close."""
        begin = time.monotonic()
        self._phase = "shutting down"
        self.library.stop_following()
        await self._health.enter_graceful_shutdown()
        delay, grace = self.config.drain_delay_seconds, self.config.grace_seconds
        log.info("draining", extra={"delay_seconds": delay, "grace_seconds": grace})
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), delay)
        if self._hurry.is_set():  # whatever `wait_for` says of what was there before it began
            grace = 0.0
        await self.library.stage.drain(grace)
        self._thinker.hang_up()
        self._inference.hang_up()
        await self._grpc.stop(_LAST_CALLS_SECONDS)
        await self.library.stage.close()
        await self._http.stop()
        log.info("stopped", extra={"seconds": round(time.monotonic() - begin, 3)})

    def _on_signal(self) -> None:
        if self._phase == "starting":
            # Nothing is served yet, and a thread that fetches or loads cannot be told to stop.
            log.info("stopped before it served")
            os._exit(0)
        if self._stop.is_set():
            self._hurry.set()
            self.library.stage.end_all()
        self._stop.set()

    def _make_grpc(self) -> grpc.aio.Server:
        config, age = self.config, self.config.max_connection_age_seconds
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
                # Calls that an old connection has end on it: the grace after its age has no bound by default.
                *([("grpc.max_connection_age_ms", max(1, round(1000 * age)))] if age else []),
            ],
            maximum_concurrent_rpcs=config.max_concurrent_calls,
        )
        engine = config.engine
        self._thinker = Thinker(
            self.library.models,
            max_rows=engine.max_rows,
            max_links=engine.max_links,
            max_stream_requests=engine.max_waiting + engine.num_slots,
            on_refusal=self._metrics.rejected,
        )
        register(self._thinker, server)
        self._inference = inference.Inference(
            self.library.models,
            library=self.library,
            submit=self._thinker.submit,
            counts=self._metrics.counts,
            ready=lambda: self._not_ready() is None,
            alive=lambda: self.library.stage.broken is None,
            max_rows=engine.max_rows,
            max_bytes=config.max_message_bytes,
            max_stream_requests=engine.max_waiting + engine.num_slots,
            version_policy=config.version_policy,
            control=config.repository_control,
            on_refusal=self._metrics.rejected,
        )
        inference.register(self._inference, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if config.reflection:
            services = (SERVICE, inference.SERVICE, _HEALTH_SERVICE, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(services, server)
        try:
            self.port = server.add_insecure_port(config.address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {config.address}: {error}") from error
        return server

    def _bound_address(self) -> str:
        return f"{self.config.address.rpartition(':')[0]}:{self.port}"

    def _not_ready(self) -> str | None:
        """Why no request is taken now, or none of some model; None when all is well."""
        nothing = None if list(self.library.models) else "no model is ready"
        return self._phase or self.library.stage.broken or nothing

    def _announce(self, name: str) -> None:
        """Let health say how a model is, of which a version came or went, and how the whole is."""
        task = asyncio.get_running_loop().create_task(self._set_health(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _set_health(self, name: str) -> None:
        status = health_pb2.HealthCheckResponse
        whole = self._not_ready() is None
        healthy = {name: self.library.stage.healthy(name), **dict.fromkeys(("", SERVICE, inference.SERVICE), whole)}
        for service, serving in healthy.items():
            await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)


def _process_registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry
