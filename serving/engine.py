"""One model's thought loop: admit, tick, record; rows and numbers in, events out. No I/O, no threads.

step:  scheduler.plan -> backend.move, backend.admit -> backend.tick -> scheduler.record -> events
                                                       a chain's next link -> scheduler.follow
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

import numpy as np

from serving.backends.base import Backend, TickOutput
from serving.chain import Chain, next_link
from serving.errors import BackendFailed, DeadlineExceeded, ServingError, Unavailable
from serving.events import Answer, Event, Failure, Tick
from serving.finite import finite_rows
from serving.program import top
from serving.progress import Progress
from serving.readout import leading
from serving.request import Array, Request, StopReason
from serving.scheduler import Ended, Scheduler
from serving.waiting import Thought

log = logging.getLogger(__name__)


@dataclass(slots=True)
class StepReport:
    """What one step did: events for callers, facts for metrics."""

    events: list[tuple[Request, Event]] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    admitted: list[Thought] = field(default_factory=list)
    first_ticks: list[Request] = field(default_factory=list)
    """Requests of which a row ticked for the first time."""
    finished: list[Progress] = field(default_factory=list)
    """Requests that ended with a summary."""
    failures: list[ServingError] = field(default_factory=list)
    num_ticked: int = 0
    num_running: int = 0
    num_waiting: int = 0
    encode_seconds: float | None = None
    tick_seconds: float | None = None
    now: float = 0.0


class Engine:
    """Runs thoughts in slots until each stops.

    Args:
        clock: monotonic seconds, for how long ticks take; deadlines are on it too.
        deadline_margin_seconds: an answer leaves this much, and a recent tick's time, before its deadline.
        chain_ahead: answers of a chain that may be unread; beyond, its next links are parked.
    """

    def __init__(
        self,
        backend: Backend,
        scheduler: Scheduler,
        *,
        clock: Callable[[], float],
        deadline_margin_seconds: float = 0.02,
        chain_ahead: int = 32,
    ) -> None:
        self.backend = backend
        self.scheduler = scheduler
        self.chain_ahead = chain_ahead
        self._clock = clock
        self._margin = deadline_margin_seconds
        self._progress: dict[Request, Progress] = {}
        self._step_seconds = 0.0  # a peak that decays: an answer must be in time after a slow step, too
        self._tick_seconds = 0.0  # moving means, for how long a refused caller should wait
        self._thought_ticks = 1.0

    @property
    def idle(self) -> bool:
        """Whether a step has nothing to do now."""
        return self.scheduler.idle and self.rest_seconds > 0

    @property
    def rest_seconds(self) -> float:
        """How long nothing needs doing while nothing runs or waits: until the deadline of a parked link, or `inf`."""
        deadline = self.scheduler.next_parked_deadline
        return deadline if deadline == inf else deadline - self._horizon - self._clock()

    def submit(self, request: Request) -> None:
        """Let a request wait for slots.

        Raises:
            QueueFull: too many thoughts wait.
        """
        self.scheduler.submit(request, retry_after_seconds=self._queue_seconds())
        self._progress[request] = Progress(request)

    def read(self, request: Request, answers: int) -> None:
        """Note that the caller of a chain has taken that many more answers: parked links may go on."""
        progress = self._progress.get(request)
        if progress is None:  # it has ended since
            return
        progress.unread -= answers
        if progress.unread < self.chain_ahead:
            self.scheduler.resume(request, self._clock())

    def cancel(self, request: Request, report: StepReport) -> None:
        """Forget a request whose caller left; its slots are free before the next tick."""
        self._progress.pop(request, None)
        report.ended += self.scheduler.cancel(request)

    def step(self, report: StepReport) -> None:
        """Run at most one tick, and add what came of it to `report`."""
        begin = report.now = self._clock()
        plan = self.scheduler.plan(begin, horizon=self._horizon)
        self._answer(plan.expired, report)
        for source, target in plan.moves:
            self.backend.move(source, target)
        num_running = plan.num_running
        if plan.admitted and not self._encode(plan.admitted, report):
            return  # the slots of those that failed are gaps now; the next plan closes them
        if num_running:
            self._tick(num_running, plan.admitted, report)
            self._step_seconds = max(report.now - begin, 0.8 * self._step_seconds)

    def end_all(self, report: StepReport) -> None:
        """End every thought with its best answer so far: a drain's grace is over."""
        report.now = self._clock()
        draining = Unavailable("the server is shutting down and this request was not admitted in time")
        self._answer(self.scheduler.end_all(), report, unticked=draining)

    @property
    def _horizon(self) -> float:
        """How long before its deadline a thought that ticks must end, in seconds."""
        return self._margin + self._step_seconds

    def _queue_seconds(self) -> float:
        """About how long the thoughts that wait now will take to be admitted."""
        rounds = self.scheduler.num_waiting / self.scheduler.num_slots
        return max(0.01, rounds * self._thought_ticks * self._tick_seconds)

    def _encode(self, admitted: list[Thought], report: StepReport) -> bool:
        begin = self._clock()
        slots = [thought.slot for thought in admitted if thought.slot is not None]
        names = admitted[0].request.inputs
        inputs: dict[str, Array] = {
            name: np.concatenate([thought.input(name) for thought in admitted]) for name in names
        }
        try:
            self.backend.admit(slots, inputs)
        except Exception as error:
            log.exception("encode failed", extra={"request_ids": _ids(admitted)})
            failure = BackendFailed(f"the model failed to encode this input ({type(error).__name__})")
            self._fail((thought.request for thought in admitted), failure, report)
            return False
        report.encode_seconds = self._clock() - begin
        report.admitted += admitted
        for thought in admitted:
            if thought.link == 0:
                self._progress[thought.request].admit(report.now)
        return True

    def _tick(self, n: int, admitted: list[Thought], report: StepReport) -> None:
        thoughts, table = self.scheduler.running(), self.scheduler.table
        begin = self._clock()
        try:
            output = self.backend.tick(n, details=table.wants_details)
        except Exception as error:
            log.exception("tick failed", extra={"request_ids": _ids(thoughts)})
            failure = BackendFailed(f"the model failed on a tick ({type(error).__name__})")
            self._fail((thought.request for thought in thoughts), failure, report)
            return
        report.now = self._clock()
        report.tick_seconds = report.now - begin
        report.num_ticked = n
        self._tick_seconds += 0.1 * (report.tick_seconds - self._tick_seconds)

        finite = finite_rows(output.prediction, output.certainty)
        best = top(output.prediction) if table.wants_top else None
        ended, verdict = self.scheduler.record(output.certainty, finite, output.energy, output.done, best)
        self.backend.keep(verdict.keep)
        if verdict.diverged.size:
            self.backend.keep_previous(verdict.diverged)
        for thought in admitted:
            if self._progress[thought.request].tick_first():
                report.first_ticks.append(thought.request)
        if verdict.watched.size:
            self._stream([(slot, thoughts[slot]) for slot in verdict.watched.tolist()], output, report)
        self._answer(ended, report)

    def _stream(self, watched: list[tuple[int, Thought]], output: TickOutput, report: StepReport) -> None:
        """Send this tick of the slots whose callers watch it."""
        slots = [slot for slot, _ in watched]
        prediction = output.prediction[slots]  # copies: the views are good until the next tick only
        details = {name: values[slots] for name, values in output.details.items()}
        certainty = np.clip(output.certainty[slots], 0.0, 1.0).tolist()
        energy = None if output.energy is None else output.energy[slots].tolist()
        ticks = self.scheduler.table.rows["ticks"][slots].tolist()
        leaders = leading(prediction, [thought.request.stream.top_k for _, thought in watched])
        for index, (_, thought) in enumerate(watched):
            stream = thought.request.stream
            event = Tick(
                row=thought.row,
                tick=ticks[index],
                certainty=certainty[index],
                energy=None if energy is None else energy[index],
                prediction=prediction[index] if stream.predictions else None,
                leading=leaders[index],
                details={name: details[name][index] for name in stream.details},
                link=thought.link,
            )
            report.events.append((thought.request, event))

    def _answer(self, ended: list[Ended], report: StepReport, *, unticked: ServingError | None = None) -> None:
        """Send the answers of thoughts that ended, and what their requests came to.

        Args:
            unticked: why a request none of whose rows ever ticked fails; by default its deadline.
        """
        if not ended:
            return
        report.ended += ended
        slots = [end.slot if end.slot is not None else 0 for end in ended]
        predictions = self.backend.answers(slots)
        leaders = leading(predictions, [end.thought.request.stream.top_k for end in ended])
        for index, end in enumerate(ended):
            request = end.thought.request
            progress = self._progress.get(request)
            if progress is None:  # failed with another of its rows
                continue
            if end.reason is not StopReason.DEADLINE:
                self._thought_ticks += 0.05 * (end.ticks_used - self._thought_ticks)
            if end.thought.link and not end.thought.admitted:
                progress.end_row()  # the link before was this row's last answer
            else:
                has_answer = end.answer_tick > 0
                answer = progress.answer(
                    end, predictions[index] if has_answer else None, leaders[index] if has_answer else None
                )
                if request.chain is None:
                    progress.end_row()
                elif not self._follow(request.chain, end.thought, answer, progress, report):
                    continue
                report.events += progress.flush()
            if progress.complete:
                self._finish(progress, report, unticked)
        if log.isEnabledFor(logging.DEBUG):
            for end in ended:
                log.debug("thought ended", extra=_facts(end))

    def _follow(self, chain: Chain, thought: Thought, answer: Answer, progress: Progress, report: StepReport) -> bool:
        """Let the row's next link wait, or end the row; false when its chain failed, and the request with it."""
        try:
            inputs = next_link(chain, answer, self.backend.program.inputs)
        except Exception as error:
            self._break(thought.request, error, report)
            return False
        if inputs is None:
            progress.end_row()
        else:
            self.scheduler.follow(thought, inputs, report.now, park=progress.unread >= self.chain_ahead)
        return True

    def _finish(self, progress: Progress, report: StepReport, unticked: ServingError | None) -> None:
        """Every row has ended: send the summary, or the failure of a request that never ticked."""
        request = progress.request
        del self._progress[request]
        if not progress.ticked:
            late = unticked or DeadlineExceeded("the deadline came before any row of this request ticked")
            report.events.append((request, Failure(late)))
            report.failures.append(late)
            return
        summary = progress.summary(report.now)
        if request.chain is not None:
            try:
                request.chain.finish(summary)
            except Exception as error:
                self._break(request, error, report)
                return
        report.events.append((request, summary))
        report.finished.append(progress)

    def _break(self, request: Request, error: Exception, report: StepReport) -> None:
        """Fail a request whose chain has raised."""
        log.error("chain failed", exc_info=error, extra={"request_ids": [request.request_id]})
        self._fail([request], BackendFailed(f"the model's chain failed ({type(error).__name__})"), report)

    def _fail(self, requests: Iterable[Request], error: ServingError, report: StepReport) -> None:
        """Fail requests, and free every slot they hold."""
        for request in dict.fromkeys(requests):
            self.cancel(request, report)
            report.events.append((request, Failure(error)))
            report.failures.append(error)


def _facts(end: Ended) -> dict[str, object]:
    thought = end.thought
    facts: dict[str, object] = {"request_id": thought.request.request_id, "row": thought.row, "reason": end.reason.name}
    if thought.request.chain is not None:
        facts["link"] = thought.link
    return facts | {"ticks_used": end.ticks_used, "certainty": end.certainty, "abstained": end.abstained}


def _ids(thoughts: Iterable[Thought]) -> list[str]:
    return list(dict.fromkeys(thought.request.request_id for thought in thoughts))
