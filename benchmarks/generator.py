"""Closed and open loops against a server: who asks when, and what is counted.

closed:  N callers, each of whom asks again when answered; a slow server is asked less
open:    requests at times fixed beforehand; a slow server is asked no less, and its latencies begin when a request
         should have been sent, so that a client or a server that falls behind does not hide it
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from benchmarks.callers import Reply, predicted
from benchmarks.server_side import ServerSide
from benchmarks.statistics import Slice
from benchmarks.workload import Workload

Ask = Callable[[int], Awaitable[Reply]]
Probe = Callable[[], Awaitable[None]]
"""Called when the measured seconds begin and when they end."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request; times are monotonic seconds."""

    row: int
    intended: float
    ended: float
    reply: Reply


@dataclass(frozen=True, slots=True)
class Window:
    """The measured seconds, and the processor time that the client used in them."""

    begin: float
    end: float
    cpu_seconds: float


async def closed_loop(
    ask: Ask,
    num_rows: int,
    *,
    concurrency: int,
    seconds: float,
    warm_up_seconds: float,
    probe: Probe,
    first_row: int = 0,
    patience_seconds: float = 30.0,
) -> tuple[list[Outcome], Window]:
    """Every request that ended within the window.

    Args:
        seconds: the window; when no request has ended by then, it stays open until one has.
        patience_seconds: how much longer at most.
    """
    rows = count(first_row)
    outcomes: list[Outcome] = []

    async def call_again_and_again() -> None:
        while True:
            row = next(rows) % num_rows
            begin = time.monotonic()
            reply = await ask(row)
            outcomes.append(Outcome(row, begin, time.monotonic(), reply))
            if reply.answer is None:
                await asyncio.sleep(0.01)  # a server that refuses is not asked a thousand times a second

    tasks = [asyncio.create_task(call_again_and_again()) for _ in range(concurrency)]
    try:
        await _first_failure(tasks, warm_up_seconds)
        await probe()
        outcomes.clear()
        begin, cpu_begin = time.monotonic(), time.process_time()
        await _first_failure(tasks, seconds)
        while not outcomes and time.monotonic() < begin + seconds + patience_seconds:
            await _first_failure(tasks, 0.01)
        window = Window(begin, time.monotonic(), time.process_time() - cpu_begin)
        within = list(outcomes)
        await probe()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return within, window


async def _first_failure(tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
    """Wait, but not for callers of whom one has failed."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


async def open_loop(
    ask: Ask, num_rows: int, times: NDArray[np.float64], *, seconds: float, patience_seconds: float, probe: Probe
) -> tuple[list[Outcome], Window]:
    """Every request, however late it ended.

    Args:
        times: seconds from the beginning, ascending, at which to send.
        seconds: the window; requests are sent in it, and may end after it.
        patience_seconds: how much longer; who has not ended by then has failed.
    """
    outcomes: list[Outcome] = []
    pending: set[asyncio.Task[None]] = set()

    async def call(row: int, intended: float) -> None:
        reply = Reply(None)
        try:
            reply = await ask(row)
        finally:
            outcomes.append(Outcome(row, intended, time.monotonic(), reply))

    await probe()
    begin, cpu_begin = time.monotonic(), time.process_time()
    for number, offset in enumerate(times.tolist()):
        if (wait := begin + offset - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(call(number % num_rows, begin + offset))
        pending.add(task)
        task.add_done_callback(pending.discard)
    await asyncio.sleep(max(0.0, begin + seconds - time.monotonic()))
    window = Window(begin, time.monotonic(), time.process_time() - cpu_begin)
    await probe()
    if late := set(pending):
        _, lost = await asyncio.wait(late, timeout=patience_seconds)
        for task in lost:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    return outcomes, window


def count_outcomes(outcomes: Sequence[Outcome], window: Window, workload: Workload, server: ServerSide | None) -> Slice:
    """Thoughts are those answered within the window; latencies are of every answer."""
    answered = [(outcome, outcome.reply.answer) for outcome in outcomes if outcome.reply.answer is not None]
    within = [(outcome, answer) for outcome, answer in answered if outcome.ended <= window.end]
    correct = labelled = 0
    if workload.labels is not None:
        rows = np.array([outcome.row for outcome, _ in within], np.int64)
        correct, labelled = workload.correct(rows, np.array([predicted(answer) for _, answer in within], np.int64))
    rejected = sum(outcome.reply.rejected for outcome in outcomes)
    return Slice(
        seconds=window.end - window.begin,
        thoughts=len(within),
        ticks=sum(answer.ticks_used for _, answer in within),
        latencies=np.array([outcome.ended - outcome.intended for outcome, _ in answered]),
        cpu_seconds=server.cpu_seconds if server else None,
        client_cpu_seconds=window.cpu_seconds,
        occupancy=server.occupancy if server else None,
        correct=correct,
        labelled=labelled,
        rejected=rejected,
        failed=len(outcomes) - len(answered) - rejected,
    )
