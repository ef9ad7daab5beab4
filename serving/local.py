"""A model that thinks in this process: what a server does between a message in and a message out, without gRPC."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from numpy.typing import ArrayLike

from protos import ctm_serving_pb2 as pb
from serving.assembly import new_engine
from serving.backends.load import load_backend
from serving.bundle import Bundle
from serving.client import AnswerOptions, Result, ThinkError
from serving.client.errors import from_failure
from serving.client.events import collect, events_of
from serving.client.message import answer_options, request_message
from serving.engine import StepReport
from serving.errors import BundleRefused, ServingError
from serving.events import Failure
from serving.mismatch import listing
from serving.models import Served
from serving.rpc import messages
from serving.runner import Runner
from serving.settings import BackendConfig, EngineConfig
from serving.store import find, load_bundle, scan
from serving.wire import failure, parse_request


def find_bundle(store: Path, model: str, version: int = 0) -> Bundle:
    """A model of a store, checked; version 0 is the newest that is sound.

    Raises:
        BundleRefused: there is none, or it is not sound.
    """
    if not version:
        bundles, refused = scan(store, "latest:1", [model])
        if not bundles:
            raise refused[-1]
        return bundles[0]
    versions = find(store)[0].get(model, {})
    if version not in versions:
        raise BundleRefused(f"no version {version} of model {model!r} in store {store}; there is {listing(versions)}")
    return load_bundle(versions[version])


class LocalThinker:
    """One model, asked as a server is; its answers are the same.

    Raises, when it is made:
        BundleRefused, InstallationLacks: as `load_backend`.
    """

    def __init__(
        self, bundle: Bundle, *, backend: BackendConfig | None = None, engine: EngineConfig | None = None
    ) -> None:
        self.bundle = bundle
        self._config = engine or EngineConfig()
        backend = backend or BackendConfig()
        self._kind, self._backend = backend.kind, load_backend(bundle, backend, self._config)

    async def __aenter__(self) -> Self:
        engine = new_engine(self._backend, self._config)
        self.served = Served(self.bundle, Runner(str(self.bundle), engine, on_report=_ignore), self._kind)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.served.runner.close()

    async def think(self, message: pb.ThinkRequest) -> AsyncGenerator[pb.ThinkEvent, None]:
        """What the RPC `Think` answers; whoever stops reading has the request cancelled.

        Raises:
            ServingError: the request failed.
        """
        request = parse_request(
            message,
            self.bundle,
            max_rows=self._config.max_rows,
            max_links=self._config.max_links,
            arrival=time.monotonic(),
            call_deadline=inf,
        )
        outbox = self.served.runner.submit(request)
        try:
            while events := await outbox.take():
                last = events[-1]
                for answer in messages(
                    request.request_id, events[:-1] if isinstance(last, Failure) else events, self.served
                ):
                    yield answer
                if isinstance(last, Failure):
                    raise last.error
        finally:  # also when whoever waits is cancelled
            self.served.runner.cancel(request)

    async def answer(self, inputs: Mapping[str, ArrayLike], **options: Unpack[AnswerOptions]) -> Result:
        """As `AsyncClient.answer`, but for the model's name and version.

        Raises:
            ThinkError, ValueError, TypeError: as there.
        """
        message = request_message(self.bundle.name, inputs, **answer_options(options))
        try:
            async with aclosing(self.think(message)) as told:
                result = collect([event async for one in told for event in events_of(one)])
        except ServingError as error:
            raise from_failure(failure(error)) from None
        if result is None:
            raise ThinkError("the request ended without a summary")
        return result


def _ignore(report: StepReport, merged: int) -> None:
    del report, merged  # nobody watches this engine
