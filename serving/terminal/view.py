"""The screen: one thought with a line for each tick, or several side by side as cards.

One                                              Several
    ╭ 7.png ─────╮   1 ██┊ 0.31  3 ███  7 ██        ╭ 7.png ──────────╮ ╭ 9.png ──────────╮
    │  (picture) │   2 ███ 0.92  7 █████ 3 ▏        │ ▄▄▄ tick 2 0.92 │ │ ▄▄▄ tick 2 0.44 │
    ╰────────────╯   7: certain at tick 2           │ ▀▀▀ 7 █████     │ │ ▀▀▀ 4 ███       │
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from protos import ctm_bundle_pb2 as bundle_pb2
from serving.client import Answer, ClassScore, Tick
from serving.terminal.board import Board, Thought, outcome
from serving.terminal.draw import bar, certainty_style, class_style, picture, sparkline
from serving.terminal.grid import in_rows
from serving.terminal.images import is_picture, unit
from serving.terminal.looking import ATTENTION, LOOK, over_pixels

_LARGE, _SMALL = 28, 14  # columns of a picture
_WIDE = 72  # columns of a screen that has room for a large one
_CARD_TEXT = 20  # columns beside a card's picture
_CARD = 1 + 1 + _SMALL + 1 + _CARD_TEXT + 1 + 1
_CARD_ROWS = 9
_LABEL = 12  # columns of a class name
_SHORTEST_BAR = 4
_BOLD = Style(bold=True)
_NOT_DIM = Style(dim=False)  # on a frame that is


@dataclass(frozen=True, slots=True)
class View:
    """The board as rich draws it. While thoughts run it is never taller than the screen; the last drawing holds all."""

    board: Board
    spec: bundle_pb2.TensorSpec
    running: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = console.height - 3 if self.running else None
        yield self.board.header()
        if len(self.board.thoughts) == 1:
            yield self._one(self.board.thoughts[0], console, options.max_width, room)
        else:
            yield self._cards(console, options.max_width, room)
        if not self.running:
            yield Text(self.board.times(), "dim")

    def _one(self, thought: Thought, console: Console, width: int, room: int | None) -> RenderableType:
        columns = _LARGE if width >= _WIDE else _SMALL
        title = Text(thought.image.name, _NOT_DIM, overflow="ellipsis", no_wrap=True)
        image = self._picture(thought, columns, console)
        panel = Panel(image, title=title, title_align="left", border_style="dim", width=columns + 4)
        beside = max(width - (columns + 4) - 2, 1)
        ticks = thought.ticks if room is None else thought.ticks[-max(room - 1, 1) :]
        lines: list[RenderableType] = [self._tick(tick, beside) for tick in ticks]
        if thought.answer is not None:
            lines.append(_answer(thought.answer))
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=columns + 4)
        grid.add_column(width=beside, no_wrap=True)
        grid.add_row(panel, Group(*lines))
        return grid

    def _tick(self, tick: Tick, width: int) -> Text:
        """`12 ███████┊  0.74  7 ████  9 ██  4 ▏` in `width` columns."""
        gauge = 10 if width < 60 else 16
        left = width - (2 + 1 + gauge + 1 + 4)
        label = min(max((len(one.label) for one in tick.top), default=1), _LABEL)
        shown = tick.top[: max(left // (2 + label + 1 + _SHORTEST_BAR), 1)]
        share = left // max(len(shown), 1)
        line = Text.assemble((f"{tick.tick:2d} ", "dim"))  # a style of its own would dim the bars, too
        line.append_text(bar(tick.certainty, gauge, certainty_style(tick.certainty), mark=self.board.threshold))
        line.append(f" {tick.certainty:.2f}", certainty_style(tick.certainty))
        for one in shown:
            line.append_text(_score(one, label, min(share - 2 - label - 1, 16)))
        return line

    def _cards(self, console: Console, width: int, room: int | None) -> RenderableType:
        thoughts = self.board.thoughts
        cards = [self._card(thought, console) for thought in thoughts]
        ended = [thought.answer is not None for thought in thoughts]
        return in_rows(cards, ended, card=(_CARD, _CARD_ROWS), width=width, room=room)

    def _card(self, thought: Thought, console: Console) -> Panel:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=_SMALL)
        grid.add_column(width=_CARD_TEXT, no_wrap=True)
        grid.add_row(self._picture(thought, _SMALL, console), Group(*_card_lines(thought)))
        return Panel(
            grid,
            title=Text(thought.image.name, _NOT_DIM, overflow="ellipsis", no_wrap=True),
            title_align="left",
            subtitle=None if thought.answer is None else _answer(thought.answer, short=True),
            subtitle_align="left",
            border_style="dim",
            width=_CARD,
            height=_CARD_ROWS,
        )

    def _picture(self, thought: Thought, columns: int, console: Console) -> Text:
        shape = tuple(self.spec.shape)
        if not is_picture(shape):
            return Text(f"{self.spec.name} {list(shape)}", "dim")
        colour = console.color_system is not None and not console.no_color
        brightness = unit(thought.image.values, self.spec)
        if thought.ticks and ATTENTION in thought.ticks[-1].details:
            brightness = _looked_at(brightness, thought.ticks[-1])
        return picture(brightness, columns, colour=colour)


def _looked_at(brightness: NDArray[np.float32], tick: Tick) -> NDArray[np.float32]:
    """The image in colour, [3, H, W], tinted where the tick looks."""
    height, width = brightness.shape[-2:]
    planes = np.broadcast_to(brightness, (3, height, width))
    share = 0.7 * over_pixels(tick, (height, width))
    tint = np.array(LOOK, np.float32)[:, None, None] / 255.0
    tinted: NDArray[np.float32] = (planes + (tint - planes) * share).astype(np.float32)
    return tinted


def _card_lines(thought: Thought) -> list[Text]:
    if not thought.ticks:
        return []
    now = thought.ticks[-1]
    style = certainty_style(now.certainty)
    lines = [Text.assemble(("tick ", "dim"), f"{now.tick:<2d}  ", (f"{now.certainty:.2f}", style))]
    label = min(max((len(one.label) for one in now.top[:3]), default=1), 8)
    lines.extend(_score(one, label, _CARD_TEXT - label - 1, gap=0) for one in now.top[:3])
    recent = thought.ticks[-_CARD_TEXT:]
    leaders = [tick.top[0] for tick in recent if tick.top]
    if all(len(one.label) == 1 for one in leaders):
        lines.append(Text.assemble(*((one.label, class_style(one.index)) for one in leaders)))
    lines.append(sparkline([tick.certainty for tick in recent]))
    return lines


def _score(one: ClassScore, label: int, width: int, *, gap: int = 2) -> Text:
    """A class's name and bar."""
    style = class_style(one.index)
    name = one.label if len(one.label) <= label else one.label[: label - 1] + "…"
    return Text.assemble(" " * gap, (name.ljust(label) + " ", style), bar(one.score, max(width, 1), style))


def _answer(answer: Answer, *, short: bool = False) -> Text:
    """`7  certain at tick 6`, or what it would have said if it were more certain."""
    style = class_style(answer.top[0].index) + _BOLD if answer.top else _BOLD
    style += _NOT_DIM
    label = answer.label or "no answer"
    if not answer.abstained:
        return Text.assemble((label, style), (f"  {outcome(answer)}", _NOT_DIM))
    why = f"abstained after {answer.ticks_used}" if short else f"abstained: {outcome(answer)}"
    return Text.assemble((f"{label}?", style), (f"  {why}", _NOT_DIM))
