"""One model's thought loop: admit, tick, record; rows and numbers in, events out. No I/O, no threads.

step:  scheduler.plan -> backend.move, backend.admit -> backend.tick -> scheduler.record -> backend.finish
       -> callers.answer
"""

import logging
from collections.abc import Callable, Iterable
from math import inf

import numpy as np

from serving.backends.base import Backend, TickOutput
from serving.callers import Callers
from serving.errors import BackendFailed, ServingError, Unavailable
from serving.events import Tick
from serving.finite import finite_rows
from serving.program import top
from serving.readout import leading
from serving.report import StepReport
from serving.request import Array, Request, StopReason
from serving.scheduler import Ended, Scheduler
from serving.waiting import Thought

__all__ = ["Engine", "StepReport"]

log = logging.getLogger(__name__)


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
        self._callers = Callers(backend, scheduler, chain_ahead=chain_ahead)
        self._clock = clock
        self._margin = deadline_margin_seconds
        self._step_seconds = 0.0  # a peak that decays: an answer must be in time after a slow step, too
        self._tick_seconds = 0.0  # a moving mean, for how long a refused caller should wait

    @property
    def chain_ahead(self) -> int:
        """Answers of a chain that may be unread."""
        return self._callers.chain_ahead

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._callers)

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
        self._callers.begin(request)

    def read(self, request: Request, answers: int) -> None:
        """Note that the caller of a chain has taken that many more answers: parked links may go on."""
        self._callers.read(request, answers, self._clock())

    def cancel(self, request: Request, report: StepReport) -> None:
        """Forget a request whose caller left; its slots are free before the next tick."""
        self._callers.cancel(request, report)

    def step(self, report: StepReport) -> None:
        """Run at most one tick, and add what came of it to `report`."""
        begin = report.now = self._clock()
        plan = self.scheduler.plan(begin, horizon=self._horizon)
        self._end(plan.expired, report)
        for source, target in plan.moves:
            self.backend.move(source, target)
        num_running = plan.num_running
        if plan.admitted and not self._encode(plan.admitted, report):
            return  # the slots of those that failed are gaps now; the next plan closes them
        if num_running:
            self._tick(num_running, plan.admitted, report)
            self._step_seconds = max(report.now - begin, 0.8 * self._step_seconds)

    def end_all(self, report: StepReport, why: str = "the server is shutting down") -> None:
        """End every thought with its best answer so far: a drain's grace is over."""
        report.now = self._clock()
        draining = Unavailable(f"{why} and this request was not admitted in time")
        self._end(self.scheduler.end_all(), report, unticked=draining)

    @property
    def _horizon(self) -> float:
        """How long before its deadline a thought that ticks must end, in seconds."""
        return self._margin + self._step_seconds

    def _queue_seconds(self) -> float:
        """About how long the thoughts that wait now will take to be admitted."""
        rounds = self.scheduler.num_waiting / self.scheduler.num_slots
        return max(0.01, rounds * self._callers.thought_ticks * self._tick_seconds)

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
            self._callers.fail((thought.request for thought in admitted), failure, report)
            return False
        report.encode_seconds = self._clock() - begin
        report.admitted += admitted
        self._callers.admit(admitted, report)
        return True

    def _tick(self, n: int, admitted: list[Thought], report: StepReport) -> None:
        thoughts, table = self.scheduler.running(), self.scheduler.table
        begin = self._clock()
        try:
            output = self.backend.tick(n, details=table.wants_details)
        except Exception as error:
            log.exception("tick failed", extra={"request_ids": _ids(thoughts)})
            failure = BackendFailed(f"the model failed on a tick ({type(error).__name__})")
            self._callers.fail((thought.request for thought in thoughts), failure, report)
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
        self._callers.tick_first(admitted, report)
        if verdict.watched.size:
            self._stream([(slot, thoughts[slot]) for slot in verdict.watched.tolist()], output, report)
        self._end(ended, report)

    def _end(self, ended: list[Ended], report: StepReport, *, unticked: ServingError | None = None) -> None:
        """Finish the thoughts that ended, and answer them; see `Callers.answer`."""
        if not ended:
            return
        finished = self._finish(ended, report) if self.backend.program.finish is not None else {}
        self._callers.answer(ended, finished, report, unticked=unticked)

    def _finish(self, ended: list[Ended], report: StepReport) -> dict[Ended, dict[str, Array]]:
        """What the program's finish gives for each thought of a chain that came to something, one row's values each.

        A thought for which it gives anything that is not finite has diverged.
        """
        sound = [end for end in ended if end.answer_tick and end.reason is not StopReason.DIVERGED]
        slots = [end.slot for end in sound if end.slot is not None]
        if not slots:
            return {}
        assert len(slots) == len(sound), "a thought that ticked ends in its slot"
        begin = self._clock()
        try:
            results = self.backend.finish(slots, [end.abstained for end in sound])
        except Exception as error:
            thoughts = [end.thought for end in sound]
            log.exception("finish failed", extra={"request_ids": _ids(thoughts)})
            failure = BackendFailed(f"the model failed to finish a thought ({type(error).__name__})")
            self._callers.fail((thought.request for thought in thoughts), failure, report)
            for end in sound:
                end.reason = StopReason.CANCELLED  # nobody is answered: their ticks are wasted
            return {}
        report.now = self._clock()
        report.finish_seconds = report.now - begin
        finite = np.ones(len(sound), np.bool_)
        for values in results.values():
            finite &= np.isfinite(values).reshape(len(sound), -1).all(axis=1)
        finished = {}
        for index, end in enumerate(sound):
            if finite[index]:
                finished[end] = {name: values[index] for name, values in results.items()}
            else:
                end.reason = StopReason.DIVERGED
        return finished

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


def _ids(thoughts: Iterable[Thought]) -> list[str]:
    return list(dict.fromkeys(thought.request.request_id for thought in thoughts))
