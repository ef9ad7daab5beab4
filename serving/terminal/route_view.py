"""The screen of a maze: the route as the model would go it after each tick, and where it looks.

╭ a.png ───────────────╮   1 ██┊ 0.31  →→↓↓←·    runs into a wall at move 5
│ (maze, route on it)  │   2 ███ 0.92  →→↓↓→→↓↓  reaches the end in 8 moves
╰──────────────────────╯  reaches the end in 8 moves  certain at tick 2
"""

from dataclasses import dataclass

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from serving.client import Answer, ClassScore, Tick
from serving.terminal.board import Board, Thought, outcome
from serving.terminal.draw import bar, blend, certainty_style, rgb
from serving.terminal.grid import in_rows
from serving.terminal.looking import LOOK, over_pixels
from serving.terminal.positions import ARROWS, WAIT, Maze, Pixel, Walk, best

WALL, WAY, START, END, ROUTE, WRONG = (
    *((44, 48, 56), (236, 236, 230), (214, 69, 65), (60, 179, 90)),
    *((78, 157, 224), (242, 153, 74)),
)
_UNSURE = (128, 128, 128)
_NOT_DIM = Style(dim=False)


@dataclass(frozen=True, slots=True)
class RouteView:
    """The board as rich draws it; while thoughts run it is never taller than the screen."""

    board: Board
    mazes: list[Maze]
    """One for each row."""
    running: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = console.height - 3 if self.running else None
        yield self.board.header()
        height, width = self.mazes[0].size
        frame = 2 * width + 4
        if len(self.board.thoughts) == 1:
            yield self._one(frame, options.max_width, room)
        else:
            cards = [self._card(row, frame) for row in range(len(self.board.thoughts))]
            ended = [thought.answer is not None for thought in self.board.thoughts]
            yield in_rows(cards, ended, card=(frame, height + 2), width=options.max_width, room=room)
        if not self.running:
            yield Text(self.board.times(), "dim")

    def _one(self, frame: int, width: int, room: int | None) -> RenderableType:
        thought = self.board.thoughts[0]
        beside = max(width - frame - 2, 1)
        ticks = thought.ticks if room is None else thought.ticks[-max(room - 1, 1) :]
        lines = [self._tick(tick, beside) for tick in ticks]
        if thought.answer is not None:
            lines.append(self._answer(0, thought.answer))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=frame)
        table.add_column(width=beside, no_wrap=True)
        table.add_row(self._card(0, frame), Group(*lines))
        return table

    def _tick(self, tick: Tick, width: int) -> Text:
        line = Text.assemble((f"{tick.tick:2d} ", "dim"))
        line.append_text(bar(tick.certainty, 10, certainty_style(tick.certainty), mark=self.board.threshold))
        line.append(f" {tick.certainty:.2f}  ", certainty_style(tick.certainty))
        moves = best(tick.top)
        for move in moves[: max(width - len(line), 0)]:
            line.append(ARROWS[move.label], Style(color=rgb(blend(_UNSURE, ROUTE, move.score))))
        if len(line) + 2 + 24 <= width:
            line.append("  " + _walk(self.mazes[tick.row], moves).outcome(), "dim")
        return line

    def _answer(self, row: int, answer: Answer) -> Text:
        if not answer.top:
            return Text(f"no answer  {outcome(answer)}", _NOT_DIM)
        found = _walk(self.mazes[row], best(answer.top))
        style = Style(color=rgb(END if found.arrived else WRONG), bold=True) + _NOT_DIM
        abstained = ", abstained" if answer.abstained else ""
        return Text.assemble((found.outcome(), style), (f"  {outcome(answer)}{abstained}", _NOT_DIM))

    def _card(self, row: int, frame: int) -> Panel:
        thought = self.board.thoughts[row]
        below = None
        if thought.answer is not None:
            below = Text(outcome(thought.answer), _NOT_DIM, overflow="ellipsis", no_wrap=True)
        elif thought.ticks:
            below = Text(f"tick {thought.ticks[-1].tick}  {thought.ticks[-1].certainty:.2f}", _NOT_DIM)
        return Panel(
            self._maze(row),
            title=Text(thought.image.name, _NOT_DIM, overflow="ellipsis", no_wrap=True),
            title_align="left",
            subtitle=below,
            subtitle_align="left",
            border_style="dim",
            width=frame,
        )

    def _maze(self, row: int) -> Text:
        """Two columns a pixel; the route's moves stand where they go."""
        thought, maze = self.board.thoughts[row], self.mazes[row]
        height, width = maze.size
        moves = _moves_of(thought)
        found = _walk(maze, moves)
        looks = over_pixels(thought.ticks[-1], maze.size) if thought.ticks else np.zeros(maze.size)
        # A pixel that is crossed again shows the later move.
        steps = {pixel: move for pixel, move in zip(found.pixels, moves, strict=False) if move.label != WAIT}
        lines = []
        for y in range(height):
            line = Text(no_wrap=True)
            for pixel in ((y, x) for x in range(width)):
                if pixel == found.blocked:
                    line.append("××", Style(color=rgb(WALL), bgcolor=rgb(WRONG)))
                else:
                    line.append_text(_cell(maze, pixel, steps.get(pixel), looks[pixel]))
            lines.append(line)
        return Text("\n", no_wrap=True).join(lines)


def _cell(maze: Maze, pixel: Pixel, step: ClassScore | None, look: float) -> Text:
    """Two columns: the move that is made here, on a ground that says what is here and how much the tick looks here."""
    if maze.is_wall(pixel):
        return Text("██", Style(color=rgb(blend(WALL, LOOK, look))))
    ground = blend(WAY, LOOK, look)
    if step is not None:
        ground = blend(ground, ROUTE, step.score)
    ground = {maze.start: START, maze.end: END}.get(pixel, ground)
    mark = ARROWS[step.label] if step is not None else {maze.start: "S", maze.end: "E"}.get(pixel, " ")
    return Text(f"{mark} ", Style(color=rgb(WALL), bgcolor=rgb(ground), bold=True))


def _walk(maze: Maze, moves: list[ClassScore]) -> Walk:
    return maze.walk([move.label for move in moves])


def _moves_of(thought: Thought) -> list[ClassScore]:
    """Of the answer, or of the latest tick."""
    if thought.answer is not None and thought.answer.top:
        return best(thought.answer.top)
    return best(thought.ticks[-1].top) if thought.ticks else []
