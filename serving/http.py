"""The side port, for machines that watch: `/metrics`, `/healthz`, `/readyz`."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


class SidePort:
    """A small HTTP server on the running event loop.

    Args:
        not_ready: why no request is taken now (starting, shutting down); None when they are.
        broken: what only a restart mends; None while all is well.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        not_ready: Callable[[], str | None],
        broken: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._not_ready = not_ready
        self._broken = broken
        application = web.Application()
        application.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1.0)

    async def start(self, address: str) -> int:
        """Listen on HOST:PORT; returns the port, which the system chooses for 0.

        Raises:
            OSError: the address is taken, or not ours.
        """
        host, _, port = address.rpartition(":")
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host.strip("[]"), int(port)).start()
        except OSError as error:
            await self._runner.cleanup()
            raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from error
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Close the port; harmless when it never opened."""
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})

    async def _healthz(self, _: web.Request) -> web.Response:
        reason = self._broken()
        return web.Response(text=f"{reason or 'alive'}\n", status=503 if reason else 200)

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = self._not_ready()
        return web.Response(text=f"{reason or 'ready'}\n", status=503 if reason else 200)
