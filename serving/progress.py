"""How far a request has come: which rows have ended, and what their answers came to."""

from collections.abc import Iterable

from serving.events import Answer, Event, Leading, Summary
from serving.request import Array, Request, StopReason
from serving.scheduler import Ended


class Progress:
    """Counts the rows of one request that have ended.

    Answers of rows that never ticked are held back until a row of the request has ticked: if none ever does, the
    request fails instead.
    """

    __slots__ = (
        "_abstained",
        "_abstentions",
        "_first_admission",
        "_held",
        "_last_admission",
        "_left",
        "encode_seconds",
        "links",
        "request",
        "ticked",
        "ticks_used",
        "unread",
    )

    def __init__(self, request: Request) -> None:
        self.request = request
        self.ticked = False
        self.ticks_used = 0
        self.links = [0] * request.rows
        """Of each row, those that were answered."""
        self.encode_seconds = 0.0
        """Of the encodings that any of its rows took part in."""
        self.unread = 0
        """Answers that the caller is not known to have taken; counted down for chains alone."""
        self._left = request.rows
        self._abstained = [False] * request.rows
        self._abstentions = [0] * request.rows
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

    def answer(self, ended: Ended, prediction: Array | None, leading: Leading | None) -> Answer:
        """Take in a thought that ended."""
        thought, reason, abstained = ended.thought, ended.reason, ended.abstained
        assert reason is not StopReason.CANCELLED, "nobody is told of a cancelled thought"
        self.ticks_used += ended.ticks_used
        self.links[thought.row] += 1
        self.unread += 1
        self._abstained[thought.row] = abstained
        self._abstentions[thought.row] += abstained
        answer = Answer(
            row=thought.row,
            ticks_used=ended.ticks_used,
            answer_tick=ended.answer_tick,
            certainty=ended.certainty,
            stop_reason=reason,
            abstained=abstained,
            prediction=prediction,
            leading=leading,
            energy=ended.energy,
            link=thought.link,
        )
        self._held.append(answer)
        return answer

    def end_row(self) -> None:
        """A row has no further thought."""
        self._left -= 1

    def flush(self) -> Iterable[tuple[Request, Event]]:
        """The answers that may go out now."""
        if not self.ticked:
            return ()
        answers, self._held = self._held, []
        return [(self.request, answer) for answer in answers]

    @property
    def queue_seconds(self) -> float:
        """From its arrival to the admission of the last row; of chains, of their first link."""
        return max(0.0, self._last_admission - self.request.arrival)

    def think_seconds(self, now: float) -> float:
        """From the first admission until now."""
        return 0.0 if self._first_admission is None else max(0.0, now - self._first_admission)

    def summary(self, now: float) -> Summary:
        return Summary(
            abstain_mask=self._abstained,
            abstentions=self._abstentions,
            ticks_used=self.ticks_used,
            queue_seconds=self.queue_seconds,
            think_seconds=self.think_seconds(now),
        )
