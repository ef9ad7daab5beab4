"""What is loaded of the store, and how one version takes another's place while requests come in.

    store --find, look--> newest N that are sound --load, off the event loop--> enter the stage
                                                           the one replaced --> leaves it

A version is served from the moment it is ready, and from the same moment on the one it replaces takes no new request:
between the two none is refused. What runs, chains among it, ends where it began.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from serving.backends.base import Backend
from serving.backends.load import load_backend
from serving.errors import BundleRefused, InstallationLacks, UnknownModel
from serving.metrics import Metrics
from serving.mismatch import listing, quote
from serving.models import Key, Served
from serving.settings import ServerConfig
from serving.stage import Stage
from serving.store import Bundle, Looks, find, load_bundle, look, newest

log = logging.getLogger(__name__)


class State(StrEnum):
    """As Open Inference names them."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"  # it takes no request; those that it has go on
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Indexed:
    """A version that stands in the store or is served, and how it is with it."""

    name: str
    version: int
    state: State
    reason: str = ""
    """Why it is unavailable."""


@dataclass(slots=True)
class _Known:
    """What came of a bundle; it stands while the bundle looks the same."""

    looks: Looks | None
    served: Served | None = None
    refusal: BundleRefused | None = None


class Library:
    """Owns what is loaded; `models` is where requests find it.

    Args:
        on_change: told the name of a model of which a version came, left, went or died.
    """

    def __init__(self, config: ServerConfig, metrics: Metrics, on_change: Callable[[str], None]) -> None:
        self.stage = Stage(config, metrics, on_change)
        self.models = self.stage.models
        self._config, self._metrics = config, metrics
        self._most = newest(config.version_policy)
        self._asked: dict[str, bool] = {}  # loaded or unloaded by request, whatever the configuration names
        self._listed: Mapping[str, Mapping[int, Path]] = {}
        self._known: dict[Key, _Known] = {}
        self._loading: set[Key] = set()
        self._reported: set[str] = set()
        self._changing = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None

    def index(self) -> list[Indexed]:
        """Every version in the store or served, by name and number."""
        states = {
            (name, version): Indexed(name, version, State.UNAVAILABLE, "not loaded")
            for name, versions in self._listed.items()
            for version in versions
        }
        for key, known in self._known.items():
            if known.refusal is not None:
                states[key] = Indexed(*key, State.UNAVAILABLE, str(known.refusal))
        for served in self.stage.leaving:
            states[served.key] = Indexed(*served.key, State.UNLOADING)
        for key in self._loading:
            states[key] = Indexed(*key, State.LOADING)
        for served in self.models:
            states[served.key] = Indexed(*served.key, State.READY)
            if self.stage.died(served):
                states[served.key] = Indexed(*served.key, State.UNAVAILABLE, "its engine has failed")
        return [states[key] for key in sorted(states)]

    async def start(self) -> None:
        """Serve every sound bundle that the configuration names, and follow the store from then on.

        Raises:
            BundleRefused: no bundle of the store may serve, or none of a model that the configuration names.
            InstallationLacks: no bundle can be served with what is installed.
        """
        await self.refresh()
        store = self._config.store
        if missing := sorted(name for name in set(self._config.models) if not self.models.of(name)):
            raise BundleRefused(f"store {store} has no bundle that may serve {', '.join(missing)}")
        if not list(self.models):
            raise BundleRefused(f"store {store} has no bundle that may serve")
        if self._config.store_poll_seconds:
            self._following = asyncio.create_task(self._follow())

    def stop_following(self) -> None:
        """Leave what is served as it is from now on."""
        if self._following is not None:
            self._following.cancel()

    async def refresh(self) -> None:
        """Make what is served what the store holds: versions that came are loaded, those that went leave.

        A bundle that must not serve is reported once, and left alone until its files change.
        """
        async with self._changing:
            names = {served.bundle.name for served in self.models}
            if not await self._list():
                names.clear()  # what cannot be seen now is not gone
            for name in sorted(names.union(self._listed)):
                if self._wanted(name):
                    await self._update(name)

    async def load(self, name: str) -> None:
        """Serve a model's newest sound versions, as many as the version policy says, and follow it from then on.

        One that was refused before, or whose engine has failed, is tried again.

        Raises:
            UnknownModel: the store has no such model.
            BundleRefused: none of its versions may serve.
        """
        async with self._changing:
            await self._list()
            if name not in self._listed:
                raise UnknownModel(f"no model {quote(name)} in the store, which holds {listing(sorted(self._listed))}")
            for (known_name, _), known in self._known.items():
                failed = known.served is not None and self.stage.died(known.served)
                if known_name == name and (failed or known.refusal is not None):
                    known.looks = None
            try:
                refused = await self._update(name)
            except InstallationLacks as error:
                raise BundleRefused(str(error), reason="not_runnable") from error
            if not self.models.of(name):
                raise refused[0]
            self._asked[name] = True

    async def unload(self, name: str) -> None:
        """Take a model from service until it is loaded by request; returns when its last request has ended.

        Raises:
            UnknownModel: it is not served.
        """
        async with self._changing:
            versions = self.models.of(name)
            if not versions:
                served = sorted({served.bundle.name for served in self.models})
                raise UnknownModel(f"no model {quote(name)}; served are {listing(served)}")
            self._asked[name] = False
            leaving = [self._retire(served) for served in versions]
        await asyncio.wait(leaving)  # they go on, should the caller not wait so long

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._config.store_poll_seconds)
            try:
                await self.refresh()
            except Exception:
                log.exception("the store could not be followed; what is served stays")

    def _wanted(self, name: str) -> bool:
        return self._asked.get(name, not self._config.models or name in self._config.models)

    async def _list(self) -> bool:
        """Look at the store anew; whether all of it could be seen."""
        listed, refused = await asyncio.to_thread(find, self._config.store)
        for error in refused:
            if str(error) not in self._reported:
                self._refuse(error)
        self._reported = {str(error) for error in refused}
        self._listed = listed
        for name, version in list(self._known):
            if version not in listed.get(name, {}) and self._known[name, version].served is None:
                del self._known[name, version]
        return all(error.reason != "unreadable" for error in refused)

    async def _update(self, name: str) -> list[BundleRefused]:
        """Serve the newest sound versions of a model and no others; returns why newer ones do not serve."""
        sound: list[Served] = []
        refused: list[BundleRefused] = []
        for version, path in sorted(self._listed.get(name, {}).items(), reverse=True):
            if len(sound) == self._most:
                break
            try:
                sound.append(await self._open((name, version), path))
            except BundleRefused as error:
                refused.append(error)
        for served in self.models.of(name):
            if served not in sound:
                self._retire(served)
        return refused

    async def _open(self, key: Key, path: Path) -> Served:
        """Have a version served; raises BundleRefused when it must not be, but reports that only once."""
        looks = await asyncio.to_thread(look, path)
        known = self._known.get(key)
        if known is None or known.looks != looks:
            before = None if known is None else known.served
            try:
                known = _Known(looks, await self._load(key, path, before))
            except BundleRefused as error:
                self._refuse(error)
                known = _Known(looks, before, error)  # what is in memory of it is as sound as it was
            self._known[key] = known
        if known.served is None:
            assert known.refusal is not None, "a bundle that is not served was refused"
            raise known.refusal
        return known.served

    async def _load(self, key: Key, path: Path, before: Served | None) -> Served:
        begin = time.monotonic()
        self._loading.add(key)
        try:
            bundle, backend = await asyncio.to_thread(_verify_and_warm, path, self._config)
        finally:
            self._loading.discard(key)
        served = self.stage.enter(bundle, backend, instead_of=before)
        seconds = round(time.monotonic() - begin, 3)
        log.info("model ready", extra={"model": bundle.name, "version": bundle.version, "seconds": seconds})
        return served

    def _retire(self, served: Served) -> asyncio.Task[None]:
        del self._known[served.key]
        return self.stage.leave(served)

    def _refuse(self, error: BundleRefused) -> None:
        log.error("bundle refused", extra={"reason": str(error)})
        self._metrics.refused(error.reason)


def _verify_and_warm(path: Path, config: ServerConfig) -> tuple[Bundle, Backend]:
    """The slow half of loading, for a thread: every file is read, and every graph run at every row count."""
    bundle = load_bundle(path)
    return bundle, load_backend(bundle, config.backend, config.engine)
