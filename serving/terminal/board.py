"""What is known so far of the thoughts on the screen."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.text import Text

from serving.client import Answer, ClassScore, Event, StopReason, Summary, Tick
from serving.terminal.images import Loaded

REASONS = {
    StopReason.CANCELLED: "cancelled",
    StopReason.DIVERGED: "numbers no longer finite",
    StopReason.MODEL_DONE: "the model is done",
    StopReason.CERTAIN: "certain",
    StopReason.ENERGY: "energy settled",
    StopReason.TICK_BUDGET: "out of ticks",
    StopReason.DEADLINE: "out of time",
}


def leaders(top: Sequence[ClassScore]) -> str:
    """The best classes and how likely they are: `7 0.97  9 0.02`."""
    return "  ".join(f"{one.label} {one.score:.2f}" for one in top)


@dataclass(slots=True)
class Thought:
    """One row."""

    image: Loaded
    ticks: list[Tick] = field(default_factory=list)
    answer: Answer | None = None


@dataclass(slots=True)
class Board:
    """All rows of a request."""

    model: str
    """With its version, `mnist/1`."""
    threshold: float | None
    """At which certainty a thought stops; None when it is not what stops it."""
    max_ticks: int
    thoughts: list[Thought]
    words: Callable[[Sequence[ClassScore]], str] = leaders
    """A prediction in a line of plain text."""
    positions: bool = False
    """Whether an answer is a label at each of several positions."""
    began: float = field(default_factory=time.monotonic)
    """When it was asked."""
    first_tick_seconds: float | None = None
    """From asking to the first tick's arrival."""
    seconds: float | None = None
    """From asking to the summary's arrival."""
    summary: Summary | None = None

    def record(self, event: Event, now: float) -> float:
        """Note what arrived; returns how long after asking."""
        seconds = now - self.began
        match event:
            case Tick():
                self.thoughts[event.row].ticks.append(event)
                if self.first_tick_seconds is None:
                    self.first_tick_seconds = seconds
            case Answer():
                self.thoughts[event.row].answer = event
            case Summary():
                self.summary, self.seconds = event, seconds
        return seconds

    def header(self) -> Text:
        """The model, and when its thoughts stop."""
        rule = f"certain from {self.threshold:.2f}, " if self.threshold is not None else ""
        return Text.assemble((self.model, "bold"), (f"  {rule}at most {self.max_ticks} ticks", "dim"))

    def times(self) -> str:
        """How long it took, for people: `first tick after 2.1 ms, all after 5.3 ms`."""
        parts = []
        if self.first_tick_seconds is not None:
            parts.append(f"first tick after {time_text(self.first_tick_seconds)}")
        if self.seconds is not None:
            parts.append(f"all after {time_text(self.seconds)}")
        return ", ".join(parts)


def outcome(answer: Answer) -> str:
    """Why and when a thought stopped: `certain at tick 6`, `out of ticks after 24, answer of tick 11`."""
    if answer.stop_reason == StopReason.CERTAIN:
        text = f"certain at tick {answer.ticks_used}"
    else:
        text = f"{REASONS[answer.stop_reason]} after {answer.ticks_used}"
    if answer.answer_tick not in (answer.ticks_used, 0):
        text += f", answer of tick {answer.answer_tick}"
    return text


def time_text(seconds: float) -> str:
    """For people: `2.1 ms`, `1.20 s`."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
