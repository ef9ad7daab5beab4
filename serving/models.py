"""Which models are served, by name and version."""

from collections.abc import Iterator
from dataclasses import dataclass

from serving.errors import Unavailable, UnknownModel
from serving.mismatch import listing, quote
from serving.runner import Runner
from serving.store import Bundle

Key = tuple[str, int]
"""A model's name and version."""


@dataclass(frozen=True, slots=True)
class Served:
    """A bundle and the runner that thinks with it."""

    bundle: Bundle
    runner: Runner
    backend: str
    """The kind of backend, for people."""

    @property
    def key(self) -> Key:
        return self.bundle.name, self.bundle.version


class Models:
    """The models of one server. Version 0 asks for the newest."""

    def __init__(self) -> None:
        self._served: dict[str, dict[int, Served]] = {}

    def add(self, served: Served) -> None:
        self._served.setdefault(served.bundle.name, {})[served.bundle.version] = served

    def remove(self, served: Served) -> None:
        """Let no further request find it; another that has taken its place stays."""
        versions = self._served.get(served.bundle.name, {})
        if versions.get(served.bundle.version) is served:
            del versions[served.bundle.version]
        if not versions:
            self._served.pop(served.bundle.name, None)

    def of(self, name: str) -> list[Served]:
        """Every version of a model, by number."""
        return [served for _, served in sorted(self._served.get(name, {}).items())]

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
