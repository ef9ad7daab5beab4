"""A thought drawn as it happens, at a pace that an eye can follow."""

import asyncio
import time
from collections import deque
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live

from serving.client import AsyncThinking, Event, Tick
from serving.terminal.board import Board


class Draw(Protocol):
    """Makes the screen of a board."""

    def __call__(self, board: Board, *, running: bool) -> RenderableType: ...


_UNDISTURBED_SECONDS = 0.1  # for reading before the first drawing, which takes long enough to spoil the times


async def show_live(board: Board, thinking: AsyncThinking, console: Console, draw: Draw, pace: float) -> None:
    """Draw every tick.

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


def _next_frame(board: Board, pending: deque[tuple[float, Event]]) -> None:
    """Note what has arrived, but at most one tick of each row."""
    advanced: set[int] = set()
    while pending:
        arrived, event = pending[0]
        if isinstance(event, Tick):
            if event.row in advanced:
                return
            advanced.add(event.row)
        board.record(event, arrived)
        pending.popleft()
