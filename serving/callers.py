"""Every request under way, and what its caller is told: answers, the summary, or the failure.

thoughts that ended -> answers -> a chain's next links -> scheduler.follow
                          └──────> summaries, failures
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

from serving.backends.base import Backend
from serving.chain import Chain, next_link
from serving.errors import BackendFailed, DeadlineExceeded, ServingError
from serving.events import Answer, Failure
from serving.progress import Progress
from serving.readout import leading
from serving.report import StepReport
from serving.request import Array, Request, StopReason
from serving.scheduler import Ended, Scheduler
from serving.waiting import Thought

log = logging.getLogger(__name__)


class Callers:
    """Keeps how far each request has come.

    Args:
        chain_ahead: answers of a chain that may be unread; beyond, its next links are parked.
    """

    def __init__(self, backend: Backend, scheduler: Scheduler, *, chain_ahead: int) -> None:
        self.chain_ahead = chain_ahead
        self.thought_ticks = 1.0
        """A moving mean of the ticks that thoughts use."""
        self._backend, self._scheduler = backend, scheduler
        self._progress: dict[Request, Progress] = {}

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._progress)

    def begin(self, request: Request) -> None:
        self._progress[request] = Progress(request)

    def read(self, request: Request, answers: int, now: float) -> None:
        """Note that the caller of a chain has taken that many more answers: parked links may go on."""
        progress = self._progress.get(request)
        if progress is None:  # it has ended since
            return
        progress.unread -= answers
        if progress.unread < self.chain_ahead:
            self._scheduler.resume(request, now)

    def cancel(self, request: Request, report: StepReport) -> None:
        """Forget a request whose caller left; its slots are free before the next tick."""
        self._progress.pop(request, None)
        report.ended += self._scheduler.cancel(request)

    def admit(self, admitted: Sequence[Thought], report: StepReport) -> None:
        """Note that thoughts begin, and how long their encoding took."""
        for thought in admitted:
            if thought.link == 0:
                self._progress[thought.request].admit(report.now)
        for request in dict.fromkeys(thought.request for thought in admitted):
            self._progress[request].encode_seconds += report.encode_seconds or 0.0

    def tick_first(self, admitted: Iterable[Thought], report: StepReport) -> None:
        """Note that thoughts have ticked for the first time."""
        for thought in admitted:
            if self._progress[thought.request].tick_first():
                report.first_ticks.append(thought.request)

    def answer(
        self,
        ended: list[Ended],
        finished: Mapping[Ended, Mapping[str, Array]],
        report: StepReport,
        *,
        unticked: ServingError | None = None,
    ) -> None:
        """Send the answers of thoughts that ended, and what their requests came to.

        Args:
            ended: at least one.
            finished: of those that came to something, what the program's finish gave, where it has one.
            unticked: why a request none of whose rows ever ticked fails; by default its deadline.
        """
        report.ended += ended
        slots = [end.slot if end.slot is not None else 0 for end in ended]
        predictions = self._backend.answers(slots)
        leaders = leading(predictions, [end.thought.request.stream.top_k for end in ended])
        for index, end in enumerate(ended):
            request = end.thought.request
            progress = self._progress.get(request)
            if progress is None:  # failed with another of its rows
                continue
            if end.reason is not StopReason.DEADLINE:
                self.thought_ticks += 0.05 * (end.ticks_used - self.thought_ticks)
            if end.thought.link and not end.thought.admitted:
                progress.end_row()  # the link before was this row's last answer
            else:
                has_answer = end.answer_tick > 0
                answer = progress.answer(
                    end, predictions[index] if has_answer else None, leaders[index] if has_answer else None
                )
                answer.finished = finished.get(end, {})
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

    def fail(self, requests: Iterable[Request], error: ServingError, report: StepReport) -> None:
        """Fail requests, and free every slot they hold."""
        for request in dict.fromkeys(requests):
            self.cancel(request, report)
            report.events.append((request, Failure(error)))
            report.failures.append(error)

    def _follow(self, chain: Chain, thought: Thought, answer: Answer, progress: Progress, report: StepReport) -> bool:
        """Let the row's next link wait, or end the row; false when its chain failed, and the request with it."""
        try:
            inputs = next_link(chain, answer, self._backend.program.beginning)
        except Exception as error:
            self._break(thought.request, error, report)
            return False
        if inputs is None:
            progress.end_row()
        else:
            self._scheduler.follow(thought, inputs, report.now, park=progress.unread >= self.chain_ahead)
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
        self.fail([request], BackendFailed(f"the model's chain failed ({type(error).__name__})"), report)


def _facts(end: Ended) -> dict[str, object]:
    thought = end.thought
    facts: dict[str, object] = {"request_id": thought.request.request_id, "row": thought.row, "reason": end.reason.name}
    if thought.request.chain is not None:
        facts["link"] = thought.link
    return facts | {"ticks_used": end.ticks_used, "certainty": end.certainty, "abstained": end.abstained}
