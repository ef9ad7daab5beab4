"""The screen of images that come out of noise: as many beside each other as fit, each at the step it has reached.

╭ 7 ─────────────╮ ╭ 3 ─────────────╮
│ (picture)      │ │ (picture)      │
│ ███████┊  0.71 │ │ █████  ┊  0.55 │   certainty of the latest thought, and the one at which thoughts stop
│ ▁▂×▃▅▇▅▃       │ │ ▁▂▂▂××▃▃       │   ticks of each step so far; × where it abstained
│ 5 ticks        │ │ 12 ticks     × │
╰ step 8/20 ─────╯ ╰ step 8/20 ─────╯
"""

from dataclasses import dataclass

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.panel import Panel
from rich.style import Style
from rich.text import Text

from serving.client import Answer
from serving.terminal.draw import bar, certainty_style, column, picture
from serving.terminal.grid import in_rows
from serving.terminal.sheet import ABSTAINED, Row, Sheet, brightness

_SMALL = 14  # columns of a picture where there is no room for its own size
_LINES = 5  # of a card, without its picture
_NOT_DIM = Style(dim=False)
_ABSTAINED = Style(color="#e05a5a", bold=True)


@dataclass(frozen=True, slots=True)
class SheetView:
    """The sheet as rich draws it; while rows run it is never taller than the screen."""

    sheet: Sheet
    running: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.sheet.header()
        pixels = self._pixels(options.max_width, console.height - 3)
        height, width = (max(round(side * pixels / max(self.sheet.size)), 1) for side in self.sheet.size)
        columns = max(width, _SMALL)
        card = (columns + 4, -(-height // 2) + _LINES)
        colour = console.color_system is not None and not console.no_color
        cards = [self._card(row, columns, pixels, colour) for row in self.sheet.rows]
        ended = [row.ended for row in self.sheet.rows]
        room = console.height - 3 if self.running else None
        yield in_rows(cards, ended, card=card, width=options.max_width, room=room)
        if not self.running:
            yield Text(self.sheet.last_line(), "dim")

    def _pixels(self, columns: int, room: int) -> int:
        """Of a picture's longer side: all of them where all cards then fit beside each other on the screen."""
        height, width = self.sheet.size
        fit = len(self.sheet.rows) * (width + 5) - 1 <= columns and -(-height // 2) + _LINES <= room
        return max(height, width) if fit else min(max(height, width), _SMALL)

    def _card(self, row: Row, columns: int, pixels: int, colour: bool) -> Panel:
        image = np.zeros(self.sheet.size) if row.image is None else row.image
        lines = [picture(brightness(image), pixels, colour=colour)]
        if row.links:
            lines += [self._certainty(row.links[-1], columns), self._history(row, columns), self._words(row, columns)]
        else:
            lines += [Text()] * 3
        return Panel(
            Group(*lines),
            title=Text(row.name, _NOT_DIM, overflow="ellipsis", no_wrap=True),
            title_align="left",
            subtitle=Text(self._step(row), _NOT_DIM, overflow="ellipsis", no_wrap=True),
            subtitle_align="left",
            border_style="dim",
            width=columns + 4,
        )

    def _certainty(self, link: Answer, columns: int) -> Text:
        style = certainty_style(link.certainty)
        line = bar(link.certainty, columns - 5, style, mark=self.sheet.threshold)
        return line.append(f" {link.certainty:.2f}", style)

    def _history(self, row: Row, columns: int) -> Text:
        """A character for each of the latest links."""
        text = Text(no_wrap=True)
        for link in row.links[-columns:]:
            if link.abstained:
                text.append(ABSTAINED, _ABSTAINED)
            else:
                text.append(column(link.ticks_used / self.sheet.max_ticks), certainty_style(link.certainty))
        return text

    def _words(self, row: Row, columns: int) -> Text:
        """Ticks and abstention of the latest link; of a row that is over, of all of them."""
        over = self._over(row)
        ticks = row.ticks if over else row.links[-1].ticks_used
        abstained = row.abstentions if over else int(row.links[-1].abstained)
        left = f"{ticks} tick{'s' * (ticks != 1)}"
        right = "" if not abstained else f"{abstained} {ABSTAINED}" if over else ABSTAINED
        gap = max(columns - len(left) - len(right), 1)
        return Text.assemble((left, "dim"), " " * gap, (right, _ABSTAINED), no_wrap=True, overflow="ellipsis")

    def _over(self, row: Row) -> bool:
        return row.ended or not self.running

    def _step(self, row: Row) -> str:
        if row.diverged:
            return f"diverged: {len(row.links)}"
        if self._over(row) and row.interrupted:
            return f"cut off: {len(row.links)}"
        return f"step {len(row.links)}/{self.sheet.steps}"
