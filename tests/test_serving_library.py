"""The store followed: what comes is served, what goes leaves, what is bad is reported once and left alone."""

import asyncio
import gc
import logging
import shutil
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from published import publish_copy

from serving.errors import BundleRefused, InstallationLacks, UnknownModel
from serving.events import Answer, Failure
from serving.library import Indexed, Library
from serving.metrics import Metrics
from serving.models import Served
from serving.outbox import Outbox
from serving.request import Request
from serving.settings import EngineConfig, ServerConfig

ENGINE = EngineConfig(num_slots=2, max_rows=8, max_waiting=64, encode_rows_per_step=2)


@dataclass
class Shelf:
    """A library of a store of its own, and what it said."""

    library: Library
    store: Path
    source: Path
    registry: CollectorRegistry
    changes: list[str]

    def publish(self, name: str = "tiny", version: int = 1, **fields: object) -> Path:
        return publish_copy(self.source, self.store, name, version, **fields)

    def serving(self) -> list[str]:
        return [str(served.bundle) for served in self.library.models]

    def states(self) -> dict[str, str]:
        return {f"{row.name}/{row.version}": row.state for row in self.library.index()}

    def refused(self, reason: str) -> float | None:
        return self.registry.get_sample_value("ctm_bundles_refused_total", {"reason": reason})

    def versions_with_metrics(self) -> set[str]:
        labels = [sample.labels for family in self.registry.collect() for sample in family.samples]
        return {f"{found['model']}/{found['version']}" for found in labels if "model" in found}


@pytest.fixture
async def shelf(tiny_store: Path, tmp_path: Path) -> AsyncIterator[Shelf]:
    async with open_shelf(tiny_store, tmp_path) as shelf:
        yield shelf


@asynccontextmanager
async def open_shelf(tiny_store: Path, store: Path, **settings: object) -> AsyncIterator[Shelf]:
    registry, changes = CollectorRegistry(), []
    config = ServerConfig(store=store, engine=ENGINE, **{"store_poll_seconds": 0, **settings})
    library = Library(config, Metrics(registry), changes.append)
    try:
        yield Shelf(library, store, tiny_store / "tiny" / "1", registry, changes)
    finally:
        library.stop_following()
        await library.stage.drain(10.0)
        await library.stage.close()


def ask(served: Served, rows: int = 1) -> Outbox:
    """A request that runs all of its ticks."""
    features = np.random.default_rng(0).normal(size=(rows, 4, 6)).astype(np.float32)
    stop = served.bundle.stop
    return served.runner.submit(
        Request(request_id="", inputs={"features": features}, rows=rows, stop=stop, abstain_below=0.0, arrival=0.0)
    )


async def answers(outbox: Outbox) -> int:
    """How many rows were answered; none may fail."""
    events = []
    while taken := await outbox.take():
        events += taken
    assert not [event for event in events if isinstance(event, Failure)]
    return sum(isinstance(event, Answer) for event in events)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


class TestFollowing:
    async def test_a_new_version_takes_the_place_of_the_old_one(self, shelf):
        shelf.publish(version=1)
        await shelf.library.start()
        old = shelf.library.models.find("tiny", 0)
        running = ask(old, rows=8)
        shelf.publish(version=2)
        await shelf.library.refresh()
        assert shelf.serving() == ["tiny/2"]
        with pytest.raises(UnknownModel, match="no version 1 of model 'tiny'; served are 2"):
            shelf.library.models.find("tiny", 1)
        assert await answers(running) == 8
        await until(lambda: not shelf.library.stage.leaving)
        assert shelf.versions_with_metrics() == {"tiny/2"}
        assert shelf.states() == {"tiny/1": "UNAVAILABLE", "tiny/2": "READY"}
        assert set(shelf.changes) == {"tiny"}
