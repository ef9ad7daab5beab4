"""What serves now: versions enter, and leave when the last request that they have has ended.

enter -> found by requests -> leave: found no more -> its requests end -> thread, memory and metrics go
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

from serving.assembly import new_engine
from serving.backends.base import Backend
from serving.bundle import Bundle
from serving.engine import StepReport
from serving.metrics import Metrics
from serving.models import Models, Served
from serving.runner import Runner
from serving.settings import ServerConfig

log = logging.getLogger(__name__)

_LEFT = "this version of the model is no longer served"


class Stage:
    """The versions that have an engine, those that leave among them. `models` is where requests find the others.

    Args:
        on_change: told the name of a model of which a version came, left, went or died.
    """

    def __init__(self, config: ServerConfig, metrics: Metrics, on_change: Callable[[str], None]) -> None:
        self.models = Models()
        self._config, self._metrics, self._on_change = config, metrics, on_change
        self._leaving: dict[Served, asyncio.Task[None]] = {}
        self._dead: set[Bundle] = set()

    @property
    def leaving(self) -> list[Served]:
        """Those that take no more requests, and have not done with the ones they took."""
        return list(self._leaving)

    @property
    def broken(self) -> str | None:
        """Which engine has broken an invariant of its own; None while all is well."""
        return next((f"the engine of {bundle} has failed" for bundle in self._dead), None)

    def died(self, served: Served) -> bool:
        """Whether its engine has broken an invariant of its own."""
        return served.bundle in self._dead

    def healthy(self, name: str) -> bool:
        """Whether a model is served, and every version of it takes requests."""
        versions = self.models.of(name)
        return bool(versions) and all(served.runner.accepting for served in versions)

    def enter(self, bundle: Bundle, backend: Backend, instead_of: Served | None = None) -> Served:
        """Serve a version from now on.

        Args:
            instead_of: what was served under the same number, and leaves in the same moment.
        """
        config = self._config
        runner = Runner(
            str(bundle),
            new_engine(backend, config.engine),
            on_report=partial(self._report, bundle),
            on_death=partial(self._mark_dead, bundle),
            outbox_capacity=config.stream_buffer,
        )
        served = Served(bundle, runner, config.backend.kind)
        if instead_of is not None:
            self.leave(instead_of)
            self._metrics.forget(bundle.name, bundle.version)
        self._metrics.model_info(bundle, config.backend.kind)
        self.models.add(served)
        self._on_change(bundle.name)
        return served

    def leave(self, served: Served) -> asyncio.Task[None]:
        """Give a version no more requests; the task ends when all that it has have ended and nothing is left of it."""
        self.models.remove(served)
        served.runner.refuse(_LEFT)
        task = self._leaving[served] = asyncio.create_task(self._leave(served))
        self._on_change(served.bundle.name)
        return task

    async def drain(self, grace_seconds: float) -> None:
        """Take no more requests and let those that run finish; when the grace is over, end them."""
        await asyncio.gather(*(runner.drain(grace_seconds) for runner in self._runners()))

    def end_all(self) -> None:
        """End what runs and waits with its best answers so far, now."""
        for runner in self._runners():
            runner.end_all()

    async def close(self) -> None:
        """End every engine thread, after a drain."""
        await asyncio.gather(*(runner.close() for runner in self._runners()), *self._leaving.values())

    def _runners(self) -> list[Runner]:
        return [served.runner for served in (*self.models, *self._leaving)]

    async def _leave(self, served: Served) -> None:
        begin = time.monotonic()
        name, version = served.key
        await served.runner.drain(self._config.leave_seconds, _LEFT)
        await served.runner.close()
        del self._leaving[served]
        self._dead.discard(served.bundle)
        if served.key not in {other.key for other in self.models}:
            self._metrics.forget(name, version)
        seconds = round(time.monotonic() - begin, 3)
        log.info("model gone", extra={"model": name, "version": version, "seconds": seconds})
        self._on_change(name)

    def _report(self, bundle: Bundle, report: StepReport, merged: int) -> None:
        self._metrics.observe(
            bundle.name, bundle.version, report, report.num_running, report.num_waiting, self._config.engine.num_slots
        )
        if merged:
            self._metrics.merged(bundle.name, bundle.version, merged)

    def _mark_dead(self, bundle: Bundle) -> None:
        """An engine broke an invariant of its own. The others serve on."""
        self._dead.add(bundle)
        self._on_change(bundle.name)
