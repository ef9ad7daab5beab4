"""A thought drawn as it happens, at a pace that an eye can follow."""

import asyncio
import time
from collections import deque
from typing import Protocol, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live

from serving.client import Answer, AsyncThinking, Event, Tick


class Record(Protocol):
    """What is known so far of a request."""

    def record(self, event: Event, now: float) -> object: ...


_Board = TypeVar("_Board", bound=Record)
_Shown = TypeVar("_Shown", bound=Record, contravariant=True)


class Draw(Protocol[_Shown]):
    """Makes the screen of a board."""

    def __call__(self, board: _Shown, /, *, running: bool) -> RenderableType: ...


_UNDISTURBED_SECONDS = 0.1  # for reading before the first drawing, which takes long enough to spoil the times


async def show_live(board: _Board, thinking: AsyncThinking, console: Console, draw: Draw[_Board], pace: float) -> None:
    """Draw every tick, and every link of a chain.

    Args:
        draw: makes the screen of a board.
        pace: seconds from one drawing to the next. Events are read, and their times taken, as they arrive: a thought
            that is faster than this is drawn after it has ended.

    Raises:
        ThinkError: the request failed; what had been thought stays on the screen.
    """
    pending: deque[tuple[float, Event]] = deque()
    news = asyncio.Event()

    async def read() -> None:
        try:
            async for event in thinking:
                pending.append((time.monotonic(), event))
                news.set()
        finally:
            news.set()

    reader = asyncio.create_task(read())
    try:
        await asyncio.wait([reader], timeout=_UNDISTURBED_SECONDS)
        with Live(draw(board, running=True), console=console, auto_refresh=False) as live:
            while pending or not reader.done():
                await news.wait()
                await asyncio.sleep(pace)
                _next_frame(board, pending)
                if not (pending or reader.done()):
                    news.clear()
                live.update(draw(board, running=bool(pending) or not reader.done()), refresh=True)
        await reader  # raises what it met
    finally:
        reader.cancel()


def _next_frame(board: Record, pending: deque[tuple[float, Event]]) -> None:
    """Note what has arrived, but at most one tick and one answer of each row."""
    advanced: set[tuple[type[Event], int]] = set()
    while pending:
        arrived, event = pending[0]
        if isinstance(event, Tick | Answer):
            if (advance := (type(event), event.row)) in advanced:
                return
            advanced.add(advance)
        board.record(event, arrived)
        pending.popleft()
