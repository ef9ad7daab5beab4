"""How far a request has come: which rows have answered, and what they came to."""

from collections.abc import Iterable

from serving.events import Answer, Event, Leading, Summary
from serving.request import Array, Request, StopReason
from serving.scheduler import Ended


class Progress:
    """Counts the rows of one request that have ended.

    Answers of rows that never ticked are held back until a row of the request has ticked: if none ever does, the
    request fails instead.
    """

    __slots__ = ("_answers", "_first_admission", "_held", "_last_admission", "_left", "request", "ticked", "ticks_used")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.ticked = False
        self.ticks_used = 0
        self._left = request.rows
        self._answers = [False] * request.rows
        self._held: list[Answer] = []
        self._first_admission: float | None = None
        self._last_admission = 0.0

    @property
    def complete(self) -> bool:
        return self._left == 0

    def admit(self, now: float) -> None:
        if self._first_admission is None:
            self._first_admission = now
        self._last_admission = now

    def tick_first(self) -> bool:
        """Whether this is the first tick of any row."""
        first, self.ticked = not self.ticked, True
        return first

    def answer(self, ended: Ended, prediction: Array | None, leading: Leading | None) -> None:
        self._left -= 1
        self._answers[ended.thought.row] = ended.abstained
        self.ticks_used += ended.ticks_used
        reason = ended.reason
        assert reason is not StopReason.CANCELLED, "nobody is told of a cancelled thought"
        self._held.append(
            Answer(
                row=ended.thought.row,
                ticks_used=ended.ticks_used,
                answer_tick=ended.answer_tick,
                certainty=ended.certainty,
                stop_reason=reason,
                abstained=ended.abstained,
                prediction=prediction,
                leading=leading,
                energy=ended.energy,
            )
        )

    def flush(self) -> Iterable[tuple[Request, Event]]:
        """The answers that may go out now."""
        if not self.ticked:
            return ()
        answers, self._held = self._held, []
        return [(self.request, answer) for answer in answers]

    def summary(self, now: float) -> Summary:
        first = self._first_admission if self._first_admission is not None else now
        return Summary(
            abstain_mask=list(self._answers),
            abstentions=[int(abstained) for abstained in self._answers],
            ticks_used=self.ticks_used,
            queue_seconds=max(0.0, self._last_admission - self.request.arrival),
            think_seconds=max(0.0, now - first),
        )
