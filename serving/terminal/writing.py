"""A text as it is written, each token's part shaded by the ticks that its thought took; or as JSON lines.

In the beginning|God created the heaven       the prompt, then what follows it; with several prompts one after another
"""

import json
import time
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.text import Text

from serving.client import Answer, AsyncThinking, ChainEnd, Event, Summary

# White on a ground that leaves both a dark and a light screen behind, the more so the stronger the shade.
_SHADES = ("", "#55708f", "#665f9e", "#824f9c", "#a43f88", "#c22a5c")
_CONTROL = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}
_CONTROL |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


@dataclass(slots=True)
class _Row:
    """One prompt and what is known of its text."""

    prompt: str
    waiting: list[tuple[str, int]] = field(default_factory=list)
    """Parts not yet on the screen, each with the ticks of its thought."""
    shown: int = 0
    """Characters that were sent, on the screen or waiting."""
    ticks: int = 0
    """Of thoughts whose text is held back: the most that one of them took."""
    tokens: int = 0
    end: ChainEnd = ChainEnd.GOES_ON
    ended: bool = False


class Writing:
    """The texts of one request, written to a console: the first as it comes, each other when the one before has ended.

    Args:
        model: with its version, `kjv/1`.
        max_ticks: the tick budget of a thought; a token that took it all has the strongest shade.
    """

    def __init__(self, console: Console, prompts: list[str], *, model: str, max_ticks: int) -> None:
        self._console, self._model, self._max_ticks = console, model, max_ticks
        self._coloured = console.is_terminal and console.color_system is not None and not console.no_color
        self._rows = [_Row(prompt) for prompt in prompts]
        self._current = -1

    @property
    def begun(self) -> bool:
        return self._current >= 0

    def record(self, event: Event) -> None:
        """Write what an event adds; with the first one, what the shades mean and the first prompt."""
        if not self.begun:
            if self._coloured:
                self._console.print(self._legend())
            self._next_row()
        if isinstance(event, Answer):
            self._add(event)
        elif isinstance(event, Summary):
            for row, text in zip(self._rows, event.texts, strict=True):
                if rest := text[row.shown :]:  # held back when the row's time was up
                    row.waiting.append((rest, max(row.ticks, 1)))
                row.ended = True
        self._write()
        if isinstance(event, Summary):
            self._console.print(self._last_line(event), style="dim", highlight=False, soft_wrap=True)

    def _add(self, answer: Answer) -> None:
        row = self._rows[answer.row]
        row.tokens += answer.token is not None
        row.ticks = max(row.ticks, answer.ticks_used)
        if answer.text:
            row.waiting.append((answer.text, row.ticks))
            row.shown += len(answer.text)
            row.ticks = 0
        row.end = answer.chain_end
        row.ended = answer.chain_end != ChainEnd.GOES_ON

    def _write(self) -> None:
        """Bring the screen up to date."""
        while self._current < len(self._rows):
            row = self._rows[self._current]
            for text, ticks in row.waiting:
                self._console.out(printable(text), style=self._shade(ticks), end="", highlight=False)
            row.waiting.clear()
            if not row.ended:
                return
            self._console.out("", highlight=False)
            self._next_row()

    def _next_row(self) -> None:
        self._current += 1
        if self._current < len(self._rows):
            prompt = printable(self._rows[self._current].prompt)
            self._console.out(prompt, style="bold" if self._coloured else None, end="", highlight=False)

    def _shade(self, ticks: int) -> Style | None:
        ground = _SHADES[_level(ticks, self._max_ticks)]
        return Style(color="#ffffff", bgcolor=ground) if self._coloured and ground else None

    def _legend(self) -> Text:
        legend = Text.assemble((self._model, "bold"), ("  ticks ", "dim"))
        for _, group in groupby(range(1, self._max_ticks + 1), lambda ticks: _level(ticks, self._max_ticks)):
            first, *others = group
            legend.append(f" {first}-{others[-1]} " if others else f" {first} ", self._shade(first))
        return legend

    def _last_line(self, summary: Summary) -> str:
        """`40 tokens, 7.3 ticks each on average, seed 5`."""
        tokens = sum(row.tokens for row in self._rows)
        line = f"{tokens} token{'s' * (tokens != 1)}, {summary.ticks_used / max(tokens, 1):.1f} ticks each on average"
        if summary.seed is not None:
            line += f", seed {summary.seed}"
        if any(row.end in (ChainEnd.GOES_ON, ChainEnd.INTERRUPTED) for row in self._rows):
            line += ", interrupted"
        return line


async def show_writing(writing: Writing, console: Console, generating: AsyncThinking) -> None:
    """Write a request's texts as they come.

    Raises:
        ThinkError: the request failed; what had been written stays on the screen, on lines of its own.
    """
    complete = False
    try:
        async for event in generating:
            writing.record(event)
            complete = isinstance(event, Summary)
    finally:
        if writing.begun and not complete:
            console.out("", highlight=False)


async def show_json(generating: AsyncThinking) -> None:
    """Print a line of JSON for each token, and one for the whole.

    Raises:
        ThinkError: the request failed.
    """
    began = time.monotonic()
    async for event in generating:
        if fields := _fields(event):
            print(json.dumps(fields | {"seconds": round(time.monotonic() - began, 6)}), flush=True)


def printable(text: str) -> str:
    """The text with every control character but tabs and line ends as its picture: a model may write any byte."""
    return text.translate(_CONTROL)


def _level(ticks: int, max_ticks: int) -> int:
    """Which shade: 0 for a single tick, the last for all that a thought may take."""
    share = (min(ticks, max_ticks) - 1) / max(max_ticks - 1, 1)
    return max(round(share * (len(_SHADES) - 1)), int(ticks > 1))


def _fields(event: Event) -> dict[str, Any]:
    match event:
        case Answer():
            return {
                "event": "answer",
                "row": event.row,
                "link": event.link,
                "text": event.text,
                "token": event.token,
                "certainty": round(event.certainty, 6),
                "stop_reason": event.stop_reason.name,
                "ticks_used": event.ticks_used,
                "answer_tick": event.answer_tick,
                "abstained": event.abstained,
                "top": [{"index": one.index, "label": one.label, "score": round(one.score, 6)} for one in event.top],
                "chain_end": event.chain_end.name if event.chain_end else None,
            }
        case Summary():
            return {
                "event": "summary",
                "model": event.model,
                "version": event.version,
                "texts": list(event.texts),
                "seed": event.seed,
                "ticks_used": event.ticks_used,
                "abstain_mask": list(event.abstain_mask),
                "queue_seconds": round(event.queue_seconds, 6),
                "think_seconds": round(event.think_seconds, 6),
            }
        case _:
            return {}
