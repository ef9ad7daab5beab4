"""The only file with a thread: one engine thread a model, and how the event loop talks to it.

    event loop:     submit, cancel, read -> commands ...      ... deliver: events into outboxes, facts to metrics
    engine thread:                    apply -> engine.step -> report

The engine never waits for a client, and the event loop never waits for a tick.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from math import inf

from serving.engine import Engine, StepReport
from serving.errors import BackendFailed, ServingError, Unavailable
from serving.events import Failure, Summary
from serving.outbox import Outbox
from serving.request import Request

log = logging.getLogger(__name__)

Command = Callable[[StepReport], None]

SHUTTING_DOWN = "the server is shutting down"


class Runner:
    """Runs one engine in a thread of its own; every method but `_run` and what it calls belongs to the event loop.

    Args:
        name: of the thread, and in logs.
        on_report: told of every step, on the event loop, with the number of ticks that were merged for slow readers.
        on_death: told when the engine broke an invariant of its own and cannot go on.
        outbox_capacity: unsent events kept for a caller before older ticks make way.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        *,
        on_report: Callable[[StepReport, int], None],
        on_death: Callable[[], None] = lambda: None,
        outbox_capacity: int = 64,
    ) -> None:
        self.engine = engine
        self._name = name
        self._on_report, self._on_death = on_report, on_death
        self._capacity = outbox_capacity
        self._outboxes: dict[Request, Outbox] = {}
        self._refusal: str | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Condition()
        self._commands: list[Command] = []
        self._stopping = False
        self._reports: deque[StepReport] = deque()
        self._delivery_due = False
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    @property
    def accepting(self) -> bool:
        return self._refusal is None

    def submit(self, request: Request) -> Outbox:
        """Hand a request over; its events, a failure to queue it among them, come through the outbox.

        Raises:
            Unavailable: the runner drains or has died.
        """
        if self._refusal is not None:
            raise Unavailable(self._refusal)
        outbox = self._outboxes[request] = self._outbox(request)
        self._empty.clear()
        self._command(lambda report: self._submit(request, report))
        return outbox

    def cancel(self, request: Request) -> None:
        """Forget a request whose caller left; harmless when it has ended."""
        if self._drop(request) is not None:
            self._command(lambda report: self.engine.cancel(request, report))

    def refuse(self, why: str) -> None:
        """Take no new requests from now on."""
        self._refusal = self._refusal or why

    async def drain(self, grace_seconds: float, why: str = SHUTTING_DOWN) -> None:
        """Let what runs and waits finish; when the grace is over, end it with its best answers so far.

        Args:
            why: told to whoever is refused, or not admitted in time.
        """
        self.refuse(why)
        try:
            await asyncio.wait_for(self._empty.wait(), grace_seconds)
        except TimeoutError:
            log.warning("grace is over", extra={"model": self._name, "requests": len(self._outboxes)})
            self.end_all(why)
            await self._empty.wait()

    def end_all(self, why: str = SHUTTING_DOWN) -> None:
        """End what runs and waits with its best answers so far, now."""
        self._command(lambda report: self.engine.end_all(report, why))

    async def close(self) -> None:
        """End the thread after the tick that it is in."""
        self.refuse(SHUTTING_DOWN)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        if hasattr(self, "engine"):  # a caller who does not read its answers keeps this, but not the model's memory
            del self.engine

    def _outbox(self, request: Request) -> Outbox:
        if request.chain is None:
            return Outbox(self._capacity)

        def on_read(answers: int) -> None:
            self._command(lambda _: self.engine.read(request, answers))

        # Half of what may be unread: an engine that has parked a link is told as soon as the rest was taken.
        return Outbox(self._capacity, on_read=on_read, batch=max(1, self.engine.chain_ahead // 2))

    def _command(self, command: Command) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _drop(self, request: Request) -> Outbox | None:
        outbox = self._outboxes.pop(request, None)
        if not self._outboxes:
            self._empty.set()
        return outbox

    def _deliver(self) -> None:
        """Put the events of all reports so far into their outboxes."""
        self._delivery_due = False  # first, so that a report appended from here on schedules another delivery
        while self._reports:
            report = self._reports.popleft()
            merged = 0
            for request, event in report.events:
                outbox = self._outboxes.get(request)
                if outbox is None:  # cancelled meanwhile
                    continue
                merged += outbox.put(event)
                if isinstance(event, Summary | Failure):
                    self._drop(request)
            self._on_report(report, merged)

    def _die(self) -> None:
        """Fail what is left: the engine thread has ended with an exception."""
        self.refuse("the model's engine has failed")
        for request in list(self._outboxes):
            outbox = self._drop(request)
            if outbox is not None:
                outbox.put(Failure(BackendFailed("the model's engine has failed")))
        self._on_death()

    # From here on: the engine thread.

    def _run(self) -> None:
        try:
            while (commands := self._next_commands()) is not None:
                report = StepReport()
                for command in commands:
                    command(report)
                if not self.engine.idle:
                    self.engine.step(report)
                self._publish(report)
        except Exception:
            log.exception("the engine thread has ended", extra={"model": self._name})
            self._tell_loop(self._die)

    def _next_commands(self) -> list[Command] | None:
        """What callers asked for meanwhile; waits while there is nothing to do, None at the end."""
        with self._wake:
            while not self._commands and self.engine.idle and not self._stopping:
                rest = self.engine.rest_seconds
                self._wake.wait(None if rest == inf else max(0.0, min(rest, threading.TIMEOUT_MAX)))
            if self._stopping:
                return None
            commands, self._commands = self._commands, []
            return commands

    def _submit(self, request: Request, report: StepReport) -> None:
        try:
            self.engine.submit(request)
        except ServingError as error:
            report.events.append((request, Failure(error)))
            report.failures.append(error)

    def _publish(self, report: StepReport) -> None:
        report.num_running = self.engine.scheduler.num_running
        report.num_waiting = self.engine.scheduler.num_waiting
        self._reports.append(report)
        if not self._delivery_due:
            self._delivery_due = True
            self._tell_loop(self._deliver)

    def _tell_loop(self, callback: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)
