"""The screen of a sequence of signs: after each tick, what the model answers at every position.

signs               + - - + - +
 1 ██┊ 0.31         ● ● ○ ○ ● ●   a colour for each label, the stronger the surer
 2 ███ 0.92         ○ ● ○ ○ ● ●
certain at tick 2   ○ even  ● odd
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.style import Style
from rich.text import Text

from serving.client import Answer, ClassScore, Tick
from serving.terminal.board import Board, Thought, outcome
from serving.terminal.draw import bar, blend, certainty_style, class_colour, class_style, rgb
from serving.terminal.looking import LOOK, over_places
from serving.terminal.positions import best

MARKS = "○●◇◆□■△▲"
_NOT_DIM = Style(dim=False)
_GAUGE = 10
_BEFORE = 3 + _GAUGE + 7  # columns before the positions
_LEAST = 3  # lines of a thought: its signs, its latest tick, its answer
_UNSURE, _SCREEN = (128, 128, 128), (24, 26, 30)


@dataclass(frozen=True, slots=True)
class SignsView:
    """The board as rich draws it; while thoughts run it is never taller than the screen."""

    board: Board
    labels: tuple[str, ...]
    running: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.board.header()
        shown = self._shown(max((console.height - 4) // _LEAST, 1))
        room = None if not self.running else max((console.height - 4) // len(shown) - _LEAST, 1)
        for thought in shown:
            yield from self._thought(thought, room, options.max_width)
        yield self._legend()
        if not self.running:
            yield Text(self.board.times(), "dim")

    def _shown(self, fit: int) -> list[Thought]:
        """All thoughts, or while more run than fit, first those that something still happens on."""
        shown = list(self.board.thoughts)
        if not self.running:
            return shown
        while len(shown) > fit and shown[0].answer is not None:
            shown.pop(0)  # has been seen to its end
        return shown[:fit]

    def _thought(self, thought: Thought, room: int | None, width: int) -> list[RenderableType]:
        ticks = thought.ticks if room is None else thought.ticks[-room:]
        lines = [self._signs(thought), *(self._tick(tick) for tick in ticks)]
        if thought.answer is not None:
            lines.append(_answer(thought.answer))
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return list(lines)

    def _signs(self, thought: Thought) -> Text:
        signs = " ".join("+" if value > 0 else "-" for value in thought.image.values)
        return Text.assemble(thought.image.name[: _BEFORE - 2].ljust(_BEFORE), (signs, "bold"))

    def _tick(self, tick: Tick) -> Text:
        line = Text.assemble((f"{tick.tick:2d} ", "dim"))
        line.append_text(bar(tick.certainty, _GAUGE, certainty_style(tick.certainty), mark=self.board.threshold))
        line.append(f" {tick.certainty:.2f}  ", certainty_style(tick.certainty))
        answers = best(tick.top)
        return line.append_text(_marks(answers, over_places(tick, len(answers))))

    def _legend(self) -> Text:
        line = Text(no_wrap=True, overflow="ellipsis")
        for index, label in enumerate(self.labels):
            line.append(f"{_mark(index)} {label}  ", class_style(index))
        return line


def _marks(answers: list[ClassScore], looks: NDArray[np.float64]) -> Text:
    """A mark for each position, the greyer the less sure; behind it, how much the tick looks there."""
    text = Text()
    for place, one in enumerate(answers):
        style = Style(color=rgb(blend(_UNSURE, class_colour(one.index), 2 * one.score - 1)))
        if looks[place] > 0.1:
            style += Style(bgcolor=rgb(blend(_SCREEN, LOOK, 0.6 * looks[place])))
        text.append(_mark(one.index), style)
        text.append(" ")
    return text


def _mark(index: int) -> str:
    return MARKS[index % len(MARKS)]


def _answer(answer: Answer) -> Text:
    abstained = ", abstained" if answer.abstained else ""
    line = Text((outcome(answer) + abstained).ljust(_BEFORE), _NOT_DIM)
    answers = best(answer.top)
    return line.append_text(_marks(answers, np.zeros(len(answers))))
