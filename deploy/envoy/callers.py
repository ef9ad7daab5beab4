"""Constant load: callers who think one request after another, and remember what went wrong."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from replicas import ROOT

from serving.client import AsyncClient, Result, StopReason, ThinkError

REQUESTS_PER_CALL = 4  # of those who send several over one ThinkStream call
WAIT_SECONDS = 240.0
WINDOWS = 6
UNEVEN = 0.35  # of an equal share: how far chance takes one in a window


@dataclass
class Callers:
    """What has become of the requests so far."""

    answered: int = 0
    failed: list[tuple[int, ThinkError]] = field(default_factory=list)
    """Which caller, and why."""
    images: NDArray[np.float32] = field(default_factory=lambda: digits())

    async def until(self, more: int) -> None:
        """Wait until so many more requests have been answered."""
        wanted = self.answered + more
        async with asyncio.timeout(WAIT_SECONDS):
            while self.answered < wanted:
                await asyncio.sleep(0.05)

    async def call(self, client: AsyncClient, number: int) -> None:
        """One caller's life: every third one uses ThinkStream, the others Think, and every tick is streamed."""
        while True:
            try:
                if number % 3:
                    async with client.think("mnist", {"image": self.images}, disabled=[StopReason.CERTAIN]) as thinking:
                        self._check(await thinking.result())
                else:
                    async with client.session() as session:
                        for _ in range(REQUESTS_PER_CALL):
                            thinking = await session.think(
                                "mnist", {"image": self.images}, disabled=[StopReason.CERTAIN]
                            )
                            self._check(await thinking.result())
            except ThinkError as error:
                self.failed.append((number, error))

    def _check(self, result: Result) -> None:
        assert [answer.row for answer in result.answers] == list(range(len(self.images)))
        assert all(answer.ticks_used == 20 for answer in result.answers)
        self.answered += 1


def digits() -> NDArray[np.float32]:
    """Some handwritten digits, [rows, 1, 28, 28] in [0, 1]."""
    files = sorted((ROOT / "examples" / "digits").glob("*.png"))[:4]
    return np.stack([np.asarray(Image.open(file), np.float32)[None] / 255 for file in files])


@asynccontextmanager
async def callers(number: int, connect: Callable[[], AsyncClient]) -> AsyncIterator[Callers]:
    """So many callers over three connections, until the block is left."""
    under_load = Callers()
    clients = [connect() for _ in range(3)]
    async with asyncio.TaskGroup() as tasks:
        everyone = [tasks.create_task(under_load.call(clients[k % 3], k)) for k in range(number)]
        try:
            yield under_load
        finally:
            for caller in everyone:
                caller.cancel()
    for client in clients:
        await client.close()


async def spread_evenly(counts: Callable[[], Awaitable[list[int]]], load: Callers, requests: int) -> None:
    """Wait for so many requests of which each replica got nearly as many as every other.

    A replica that the machine leaves no time for a while rightly gets less; one that gets less each time does not.

    Raises:
        AssertionError: it was never so.
    """
    seen = []
    for _ in range(WINDOWS):
        shares = await spread(counts, load, requests)
        if all(abs(share * len(shares) - 1) < UNEVEN for share in shares):
            return
        seen.append(shares)
    raise AssertionError(f"shares of replicas: {seen}")


async def spread(counts: Callable[[], Awaitable[list[int]]], load: Callers, requests: int) -> list[float]:
    """Each replica's share of the thoughts while so many requests are answered."""
    before = await counts()
    await load.until(requests)
    grown = [after - so_far for after, so_far in zip(await counts(), before, strict=True)]
    return [count / sum(grown) for count in grown]
