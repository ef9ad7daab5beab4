"""The store followed: what comes is served, what goes leaves, what is bad is reported once and left alone."""

import asyncio
import gc
import logging
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import describe, read_manifest, write_manifest
from prometheus_client import CollectorRegistry
from published import publish_copy
from scripted import ScriptedChain

from serving.backends.load import load_backend
from serving.errors import REFUSALS, BundleRefused, InstallationLacks, UnknownModel
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

    async def all_gone(self) -> None:
        await until(lambda: not self.library.stage.leaving)

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


def ask(served: Served, rows: int = 1, links: int = 0) -> Outbox:
    """A request of some rows, each a chain of so many links if that is said."""
    features = np.random.default_rng(0).normal(size=(rows, 4, 6)).astype(np.float32)
    following = [[{"features": features[row : row + 1]}] * (links - 1) for row in range(rows)]
    return served.runner.submit(
        Request(
            request_id="",
            inputs={"features": features},
            rows=rows,
            stop=served.bundle.stop,
            abstain_below=0.0,
            arrival=0.0,
            chain=ScriptedChain(*following) if links else None,
        )
    )


async def answers(outbox: Outbox) -> int:
    """How many rows were answered; none may fail."""
    events = []
    while taken := await outbox.take():
        events += taken
    assert not [event for event in events if isinstance(event, Failure)]
    return sum(isinstance(event, Answer) for event in events)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(200):
        while not condition():
            await asyncio.sleep(0.005)


class TestFollowing:
    async def test_a_new_version_takes_the_place_of_the_old_one_whose_thoughts_finish(self, shelf):
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
        await shelf.all_gone()
        assert shelf.versions_with_metrics() == {"tiny/2"}
        assert shelf.states() == {"tiny/1": "UNAVAILABLE", "tiny/2": "READY"}
        assert set(shelf.changes) == {"tiny"}

    async def test_a_chain_keeps_the_version_it_began_with_however_long_its_reader_takes(self, shelf):
        shelf.publish(version=1)
        await shelf.library.start()
        old = shelf.library.models.find("tiny", 0)
        chain = ask(old, links=100)
        shelf.publish(version=2)
        await shelf.library.refresh()
        await until(lambda: old.runner.engine.scheduler.idle)
        assert shelf.states() == {"tiny/1": "UNLOADING", "tiny/2": "READY"}, "parked until it is read"
        assert await answers(chain) == 100
        await shelf.all_gone()

    async def test_the_store_is_looked_at_without_being_asked(self, tiny_store, tmp_path):
        async with open_shelf(tiny_store, tmp_path, store_poll_seconds=0.02) as shelf:
            shelf.publish(version=1)
            await shelf.library.start()
            shelf.publish(version=2)
            shelf.publish("other")
            await until(lambda: shelf.serving() == ["other/1", "tiny/2"])
            shutil.rmtree(shelf.store / "other")
            await until(lambda: shelf.serving() == ["tiny/2"])

    async def test_a_store_that_cannot_be_followed_for_once_is_followed_on(
        self, tiny_store, tmp_path, monkeypatch, caplog
    ):
        async with open_shelf(tiny_store, tmp_path, store_poll_seconds=0.02) as shelf:
            shelf.publish(version=1)
            await shelf.library.start()
            with monkeypatch.context() as patch:
                patch.setattr("serving.library.find", lambda _: 1 / 0)
                await until(lambda: "ZeroDivisionError" in caplog.text)
            assert shelf.serving() == ["tiny/1"]
            shelf.publish(version=2)
            await until(lambda: shelf.serving() == ["tiny/2"])

    @pytest.mark.parametrize(
        ("policy", "steps"),
        [
            pytest.param("latest:1", ["3", "3", "2", "2"], id="newest"),
            pytest.param("latest:2", ["2 3", "1 3", "1 2", "1 2"], id="two newest"),
            pytest.param("all", ["1 2 3", "1 3", "1 2 3", "1 2"], id="all"),
        ],
    )
    async def test_versions_that_left_the_store_leave_and_what_the_policy_wants_comes(
        self, tiny_store, tmp_path, policy, steps
    ):
        async with open_shelf(tiny_store, tmp_path, version_policy=policy) as shelf:
            for version in (1, 2, 3):
                shelf.publish(version=version)
            served = []

            async def see() -> None:
                await shelf.library.refresh()
                served.append(" ".join(name.removeprefix("tiny/") for name in shelf.serving()))

            await see()
            shutil.rmtree(shelf.store / "tiny" / "2")
            await see()
            shelf.publish(version=2)
            if policy != "all":
                shutil.rmtree(shelf.store / "tiny" / "3")
            await see()
            shutil.rmtree(shelf.store / "tiny" / "3", ignore_errors=True)
            await see()
            assert served == steps

    async def test_a_model_that_left_the_store_is_gone(self, shelf):
        shelf.publish("tiny")
        shelf.publish("other")
        await shelf.library.start()
        shutil.rmtree(shelf.store / "other")
        await shelf.library.refresh()
        await shelf.all_gone()
        with pytest.raises(UnknownModel, match="no model 'other'; served are tiny"):
            shelf.library.models.find("other", 0)
        assert not shelf.library.stage.healthy("other")
        assert shelf.versions_with_metrics() == {"tiny/1"}
        assert shelf.states() == {"tiny/1": "READY"}

    async def test_a_bundle_that_was_replaced_under_its_number_is_loaded_anew(self, shelf):
        shelf.publish(description="before")
        await shelf.library.start()
        running = ask(shelf.library.models.find("tiny", 1), rows=4)
        shutil.rmtree(shelf.store / "tiny")
        shelf.publish(description="after")
        await shelf.library.refresh()
        assert [served.bundle.manifest.description for served in shelf.library.models] == ["after"]
        assert await answers(running) == 4
        await shelf.all_gone()
        assert shelf.versions_with_metrics() == {"tiny/1"}, "the series are those of the new one"
        assert shelf.library.stage.healthy("tiny")

    async def test_what_is_served_stays_while_its_folder_is_damaged(self, shelf):
        shelf.publish()
        await shelf.library.start()
        (shelf.store / "tiny" / "1" / "tick.onnx").unlink()
        await shelf.library.refresh()
        assert shelf.serving() == ["tiny/1"]
        assert await answers(ask(shelf.library.models.find("tiny", 1))) == 1
        assert shelf.refused("damaged") == 1

    @pytest.mark.parametrize("lost", ["", "tiny"], ids=["store", "model"])
    async def test_what_cannot_be_listed_now_is_not_gone(self, shelf, monkeypatch, caplog, lost):
        shelf.publish()
        await shelf.library.start()
        real = Path.iterdir

        def deny(self: Path) -> object:
            if self == shelf.store / lost:
                raise OSError(116, "Stale file handle", str(self))
            return real(self)

        monkeypatch.setattr(Path, "iterdir", deny)
        for _ in range(3):
            await shelf.library.refresh()
        assert shelf.serving() == ["tiny/1"]
        assert shelf.refused("unreadable") == 1
        assert [record.message for record in caplog.records] == ["bundle refused"], "said once"

    async def test_only_the_models_that_the_configuration_names_are_followed(self, tiny_store, tmp_path):
        async with open_shelf(tiny_store, tmp_path, models=("tiny",)) as shelf:
            shelf.publish("tiny")
            shelf.publish("other")
            await shelf.library.start()
            await shelf.library.refresh()
            assert shelf.serving() == ["tiny/1"]

    async def test_hidden_folders_are_left_alone(self, shelf):
        shelf.publish()
        shutil.copytree(shelf.source, shelf.store / ".tiny-aside" / "1")
        shutil.copytree(shelf.source, shelf.store / "tiny" / ".2")
        await shelf.library.start()
        assert shelf.states() == {"tiny/1": "READY"}
        assert [shelf.refused(reason) for reason in REFUSALS] == [0] * len(REFUSALS)


def damage(path: Path) -> None:
    (path / "tick.onnx").write_bytes(b"not a graph")


def say_newer(path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 99'))


def replace_graph(path: Path) -> None:
    """Another file, described as it is: only the runtime can tell that it is no graph."""
    (path / "tick.onnx").write_bytes(b"not a graph")
    document = read_manifest(path)
    document["files"] = [file for file in document["files"] if file["name"] != "tick.onnx"]
    document["files"].append(describe(path / "tick.onnx"))
    write_manifest(path, document)


def misname(path: Path) -> None:
    path.rename(path.with_name("v2"))


class TestBadBundles:
    @pytest.mark.parametrize(
        ("spoil", "reason", "said"),
        [
            pytest.param(damage, "damaged", "tick.onnx: got 11 bytes", id="bytes"),
            pytest.param(say_newer, "invalid", "format_version: got 99", id="manifest"),
            pytest.param(replace_graph, "not_runnable", "expected graphs that onnx runs", id="graph"),
            pytest.param(misname, "misnamed", "tiny/v2: expected a version", id="folder"),
        ],
    )
    async def test_one_is_reported_once_counted_and_left_alone(self, shelf, caplog, spoil, reason, said):
        shelf.publish(version=1)
        await shelf.library.start()
        spoil(shelf.publish(version=2))
        for _ in range(3):
            await shelf.library.refresh()
        assert shelf.serving() == ["tiny/1"]
        assert {name: shelf.refused(name) for name in REFUSALS} == {name: name == reason for name in REFUSALS}
        (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert said in record.reason
        assert await answers(ask(shelf.library.models.find("tiny", 0))) == 1

    async def test_one_is_served_once_its_files_are_sound(self, shelf):
        shelf.publish(version=1)
        await shelf.library.start()
        path = shelf.publish(version=2)
        damage(path)
        await shelf.library.refresh()
        (row,) = [row for row in shelf.library.index() if row.version == 2]
        assert (row.state, "tick.onnx" in row.reason) == ("UNAVAILABLE", True)
        shutil.copy(shelf.source / "tick.onnx", path)
        await shelf.library.refresh()
        await shelf.all_gone()
        assert shelf.states() == {"tiny/1": "UNAVAILABLE", "tiny/2": "READY"}

    async def test_one_that_left_the_store_is_forgotten(self, shelf):
        shelf.publish(version=1)
        await shelf.library.start()
        for times in (1, 2):
            damage(shelf.publish(version=2))
            await shelf.library.refresh()
            shutil.rmtree(shelf.store / "tiny" / "2")
            await shelf.library.refresh()
            assert shelf.refused("damaged") == times
        assert shelf.states() == {"tiny/1": "READY"}

    async def test_without_a_sound_bundle_a_library_does_not_start(self, shelf):
        damage(shelf.publish())
        with pytest.raises(BundleRefused, match=f"store {shelf.store} has no bundle that may serve"):
            await shelf.library.start()


class TestByRequest:
    async def test_unloading_waits_for_the_thoughts_and_the_model_stays_away_until_it_is_loaded(self, shelf):
        shelf.publish("tiny")
        shelf.publish("other")
        await shelf.library.start()
        running = ask(shelf.library.models.find("tiny", 0), rows=8)
        unloading = asyncio.ensure_future(shelf.library.unload("tiny"))
        await asyncio.sleep(0)
        assert shelf.states()["tiny/1"] == "UNLOADING"
        await unloading
        assert running.closed
        assert await answers(running) == 8
        await shelf.library.refresh()
        assert shelf.states() == {"other/1": "READY", "tiny/1": "UNAVAILABLE"}
        await shelf.library.load("tiny")
        assert shelf.serving() == ["other/1", "tiny/1"]

    async def test_a_model_loaded_by_request_is_followed_though_the_configuration_does_not_name_it(
        self, tiny_store, tmp_path
    ):
        async with open_shelf(tiny_store, tmp_path, models=("tiny",)) as shelf:
            shelf.publish("tiny")
            shelf.publish("other")
            await shelf.library.start()
            await shelf.library.load("other")
            shelf.publish("other", 2)
            await shelf.library.refresh()
            assert shelf.serving() == ["other/2", "tiny/1"]

    async def test_loading_tries_again_what_was_refused(self, shelf, monkeypatch):
        shelf.publish("tiny")
        shelf.publish("other")
        with monkeypatch.context() as patch:
            patch.setattr("serving.library.load_backend", refuse_all)
            await shelf.library.refresh()
        await shelf.library.refresh()
        assert shelf.serving() == [], "its files are as they were"
        await shelf.library.load("other")
        assert shelf.serving() == ["other/1"]

    async def test_what_cannot_be_loaded_or_unloaded_is_said(self, shelf, monkeypatch):
        shelf.publish("tiny")
        await shelf.library.start()
        damage(shelf.publish("other"))
        with pytest.raises(UnknownModel, match="no model 'absent' in the store, which holds other, tiny"):
            await shelf.library.load("absent")
        with pytest.raises(BundleRefused, match=r"bundle other/1 .*tick\.onnx"):
            await shelf.library.load("other")
        with pytest.raises(UnknownModel, match="no model 'other'; served are tiny"):
            await shelf.library.unload("other")
        await shelf.library.unload("tiny")
        monkeypatch.setattr("serving.library.load_backend", lack)
        with pytest.raises(BundleRefused, match="no abacus"):
            await shelf.library.load("tiny")

    async def test_loading_what_is_served_changes_nothing(self, shelf):
        shelf.publish()
        await shelf.library.start()
        before = shelf.library.models.find("tiny", 0)
        await shelf.library.load("tiny")
        assert shelf.library.models.find("tiny", 0) is before

    async def test_the_versions_unload_with_their_model(self, tiny_store, tmp_path):
        async with open_shelf(tiny_store, tmp_path, version_policy="all") as shelf:
            for version in (1, 2):
                shelf.publish(version=version)
            await shelf.library.start()
            await shelf.library.unload("tiny")
            assert (shelf.serving(), shelf.library.stage.leaving) == ([], [])
            assert shelf.versions_with_metrics() == set()


def refuse_all(bundle: object, *_: object) -> None:
    raise BundleRefused(f"bundle {bundle}: not today", reason="not_runnable")


def lack(*_: object) -> None:
    raise InstallationLacks("no abacus")


class TestMeanwhile:
    async def test_other_models_answer_while_one_is_loaded(self, shelf, monkeypatch):
        shelf.publish("tiny")
        await shelf.library.start()
        shelf.publish("other")
        go_on, began = threading.Event(), threading.Event()

        def load_slowly(*arguments: object) -> object:
            began.set()
            assert go_on.wait(200)
            return load_backend(*arguments)

        monkeypatch.setattr("serving.library.load_backend", load_slowly)
        refreshing = asyncio.ensure_future(shelf.library.refresh())
        await until(began.is_set)
        assert await answers(ask(shelf.library.models.find("tiny", 0))) == 1
        assert shelf.states() == {"other/1": "LOADING", "tiny/1": "READY"}
        go_on.set()
        await refreshing
        assert shelf.states() == {"other/1": "READY", "tiny/1": "READY"}

    async def test_thoughts_that_take_too_long_for_a_version_that_leaves_answer_with_what_they_have(
        self, tiny_store, tmp_path, caplog
    ):
        async with open_shelf(tiny_store, tmp_path, leave_seconds=0) as shelf:
            shelf.publish(version=1)
            await shelf.library.start()
            old = shelf.library.models.find("tiny", 1)
            holding, released = hold_ticks(old)
            running = ask(old, rows=2)
            await until(holding.is_set)
            waiting = ask(old, rows=2)
            shelf.publish(version=2)
            await shelf.library.refresh()
            await until(lambda: "grace is over" in caplog.text)
            assert shelf.library.stage.leaving == [old]
            released.set()
            await shelf.all_gone()
            assert await answers(running) == 2
            (failure,) = [event for event in await waiting.take() if isinstance(event, Failure)]
            assert "no longer served" in str(failure.error)

    async def test_a_newer_version_mends_what_an_engine_that_died_has_broken(self, shelf, caplog):
        shelf.publish(version=1)
        await shelf.library.start()
        shelf.library.models.find("tiny", 1).runner.engine.scheduler.record = None  # an invariant of ours, broken
        outbox = ask(shelf.library.models.find("tiny", 1))
        await until(lambda: outbox.closed)
        assert shelf.library.stage.broken == "the engine of tiny/1 has failed"
        assert shelf.library.index() == [Indexed("tiny", 1, "UNAVAILABLE", "its engine has failed")]
        assert "the engine thread has ended" in caplog.text
        shelf.publish(version=2)
        await shelf.library.refresh()
        await shelf.all_gone()
        assert shelf.library.stage.broken is None
        assert shelf.library.stage.healthy("tiny")

    async def test_loading_begins_anew_what_an_engine_that_died_has_broken(self, shelf):
        shelf.publish()
        await shelf.library.start()
        shelf.library.models.find("tiny", 1).runner.engine.scheduler.record = None  # an invariant of ours, broken
        outbox = ask(shelf.library.models.find("tiny", 1))
        await until(lambda: outbox.closed)
        await shelf.library.load("tiny")
        await shelf.all_gone()
        assert shelf.states() == {"tiny/1": "READY"}
        assert await answers(ask(shelf.library.models.find("tiny", 1))) == 1

    async def test_a_caller_who_does_not_read_keeps_no_memory_of_a_version_that_is_gone(self, shelf):
        shelf.publish(version=1)
        await shelf.library.start()
        old = shelf.library.models.find("tiny", 0)  # as the call's handler has it until its last message is written
        backend = weakref.ref(old.runner.engine.backend)
        unread = ask(old)
        shelf.publish(version=2)
        gc.disable()
        try:
            await shelf.library.refresh()
            await shelf.all_gone()
            await until(lambda: backend() is None)  # a thread that helped may still be about to let go of it
        finally:
            gc.enable()
        assert await answers(unread) == 1

    async def test_nothing_of_a_version_is_left_when_it_is_gone(self, shelf):
        shelf.publish(version=1)
        await shelf.library.start()
        left: list[weakref.ref[object]] = []
        gc.disable()  # memory must return when the version goes, not when the collector happens to come by
        try:
            for version in range(2, 7):
                old = shelf.library.models.find("tiny", 0)
                left += [weakref.ref(part) for part in (old.runner, old.runner.engine, old.runner.engine.backend)]
                assert await answers(ask(old, rows=3)) == 3
                del old
                shelf.publish(version=version)
                await shelf.library.refresh()
                await shelf.all_gone()
            await until(lambda: not [part for part in left if part() is not None])
        finally:
            gc.enable()
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("engine-")]
        assert names == ["engine-tiny/6"]
        assert shelf.versions_with_metrics() == {"tiny/6"}


def hold_ticks(served: Served) -> tuple[threading.Event, threading.Event]:
    """Keep a model from ticking: an event that says it is about to, and one that lets it."""
    holding, released = threading.Event(), threading.Event()
    backend = served.runner.engine.backend
    tick = backend.tick

    def wait(*arguments: object, **named: object) -> object:
        holding.set()
        assert released.wait(200)
        return tick(*arguments, **named)

    backend.tick = wait
    return holding, released
