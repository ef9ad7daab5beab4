"""The models of the store, told and changed over the Open Inference Protocol."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from protos import open_inference_pb2 as oip
from serving.mismatch import Mismatch, quote

READY = "READY"


class Indexed(Protocol):
    """A version that stands in the store or is served."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...


class Library(Protocol):
    """Owns what is loaded."""

    async def load(self, name: str) -> None: ...
    async def unload(self, name: str) -> None: ...
    def index(self) -> Iterable[Indexed]: ...


def index_message(library: Library, *, only_ready: bool) -> oip.RepositoryIndexResponse:
    """Every version, and how it is with it."""
    response = oip.RepositoryIndexResponse()
    for found in library.index():
        if found.state == READY or not only_ready:
            response.models.add(name=found.name, version=str(found.version), state=found.state, reason=found.reason)
    return response


def model_named(message: oip.RepositoryModelLoadRequest | oip.RepositoryModelUnloadRequest) -> str:
    """The model that a caller means.

    KServe's clients send its name where Triton's send that of a repository; there is one, and it has no name.

    Raises:
        Mismatch: none is named, another repository is, or a setting that would change what is loaded.
    """
    if message.model_name and message.repository_name:
        raise Mismatch("repository_name", quote(message.repository_name), "none: there is one repository")
    name = message.model_name or message.repository_name
    if not name:
        raise Mismatch("model_name", "none", "the name of a model")
    _check_parameters(message.parameters)
    return name


def _check_parameters(parameters: Mapping[str, oip.ModelRepositoryParameter]) -> None:
    for name in parameters:
        if name != "unload_dependents":  # there are none
            raise Mismatch("parameters", quote(name), "none: a bundle is loaded as it stands in the store")
