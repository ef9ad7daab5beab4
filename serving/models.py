"""Which models are served, by name and version."""

from collections.abc import Iterator
from dataclasses import dataclass

from serving.errors import Unavailable, UnknownModel
from serving.mismatch import listing, quote
from serving.runner import Runner
from serving.store import Bundle


@dataclass(frozen=True, slots=True)
class Served:
    """A bundle and the runner that thinks with it."""

    bundle: Bundle
    runner: Runner
    backend: str
    """The kind of backend, for people."""


class Models:
    """The models of one server. Version 0 asks for the newest."""

    def __init__(self) -> None:
        self._served: dict[str, dict[int, Served]] = {}

    def add(self, served: Served) -> None:
        self._served.setdefault(served.bundle.name, {})[served.bundle.version] = served

    def __iter__(self) -> Iterator[Served]:
        """By name, then version."""
        return (versions[number] for _, versions in sorted(self._served.items()) for number in sorted(versions))

    def find(self, name: str, version: int) -> Served:
        """The model asked for.

        Raises:
            UnknownModel: no such name or version; says what there is.
            Unavailable: nothing is served at all.
        """
        if not self._served:
            raise Unavailable("no model is ready")
        versions = self._served.get(name)
        if versions is None:
            raise UnknownModel(f"no model {quote(name)}; served are {listing(sorted(self._served))}")
        found = versions.get(version or max(versions))
        if found is None:
            raise UnknownModel(f"no version {version} of model {quote(name)}; served are {listing(sorted(versions))}")
        return found
