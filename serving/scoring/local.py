"""A model that thinks in this process: what a server does between a message in and a message out, without gRPC."""

import time
from collections.abc import Mapping
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from numpy.typing import ArrayLike

from serving.backends.base import Backend
from serving.backends.load import load_backend
from serving.bundle import Bundle
from serving.client import AnswerOptions, Event, Result, ThinkError
from serving.client.errors import from_failure
from serving.client.events import collect, events_of
from serving.client.message import answer_options, request_message
from serving.engine import Engine, StepReport
from serving.errors import BundleRefused, ServingError
from serving.events import Failure
from serving.mismatch import listing
from serving.outbox import Outbox
from serving.runner import Runner
from serving.scheduler import Scheduler
from serving.settings import BackendConfig, EngineConfig
from serving.store import find, load_bundle, scan
from serving.wire import event_message, failure, parse_request


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
        self._backend: Backend = load_backend(bundle, backend or BackendConfig(), self._config)

    async def __aenter__(self) -> Self:
        scheduler = Scheduler(
            num_slots=self._config.num_slots,
            max_waiting=self._config.max_waiting,
            admissions_per_plan=self._config.encode_rows_per_step,
            positions=self.bundle.program.positions,
        )
        engine = Engine(
            self._backend,
            scheduler,
            clock=time.monotonic,
            deadline_margin_seconds=self._config.deadline_margin_seconds,
            chain_ahead=self._config.chain_ahead,
        )
        self._runner = Runner(str(self.bundle), engine, on_report=_ignore)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.close()

    async def answer(self, inputs: Mapping[str, ArrayLike], **options: Unpack[AnswerOptions]) -> Result:
        """As `AsyncClient.answer`, but for the model's name and version.

        Raises:
            ThinkError, ValueError, TypeError: as there.
        """
        message = request_message(self.bundle.name, inputs, **answer_options(options))
        try:
            request = parse_request(
                message,
                self.bundle,
                max_rows=self._config.max_rows,
                max_links=self._config.max_links,
                arrival=time.monotonic(),
                call_deadline=inf,
            )
            outbox = self._runner.submit(request)
        except ServingError as error:
            raise from_failure(failure(error)) from None
        try:
            result = collect(await self._read(outbox))
        finally:  # also when whoever waits is cancelled
            self._runner.cancel(request)
        if result is None:
            raise ThinkError("the request ended without a summary")
        return result

    async def _read(self, outbox: Outbox) -> list[Event]:
        events: list[Event] = []
        while taken := await outbox.take():
            for event in taken:
                if isinstance(event, Failure):
                    raise from_failure(failure(event.error))
                events += events_of(event_message("", event, self.bundle))
        return events


def _ignore(report: StepReport, merged: int) -> None:
    del report, merged  # nobody watches this engine
