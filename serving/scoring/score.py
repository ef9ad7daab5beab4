"""Think about every row of a data set, so many at once, and say what came of each, in order.

rows -> parcels, one request each -> ask -> answers -> outcomes
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from serving.client import Answer, Cancelled, InvalidRequest, Result, ThinkError, Unavailable, UnknownModel
from serving.client.errors import QueueFull, retry_delay
from serving.request import Array
from serving.scoring.rows import Row

Ask: TypeAlias = Callable[[Array], Awaitable[Result]]
"""Thinks about [rows, ...] at once; raises `ThinkError`."""

ROWS_IN_FLIGHT = 256
"""Some of them wait beside the server's slots, so that none is ever free."""

_PARCEL_ROWS = 16
"""Of one request: its own cost is shared, and a window of a few requests still slides."""
_PARCEL_BYTES = 2**20
"""Of one request: far from the largest message that servers take."""
_GIVEN_UP = (InvalidRequest, UnknownModel, Unavailable, Cancelled)
"""What no other row would fare better with. Rows are checked before they are sent: what is invalid is how we ask."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came of one row."""

    row: Row
    answer: Answer | None
    """None when it failed."""
    error: str
    """Why it failed; empty when it did not."""


async def score(rows: Iterable[Row], ask: Ask, *, in_flight: int = ROWS_IN_FLIGHT) -> AsyncGenerator[Outcome, None]:
    """Outcomes in the order of the rows, which are read as they are needed.

    A row that fails is told in its outcome and takes no other along. While the server's queue is full, this waits.

    Args:
        in_flight: rows that may have been asked about and not yet be told; at least one request's.

    Raises:
        ThinkError: the server cannot be reached any more, or takes nothing that is asked in this way.
    """
    tasks: deque[asyncio.Task[list[Outcome]]] = deque()
    sizes: deque[int] = deque()
    try:
        for parcel in _parcels(rows, min(_PARCEL_ROWS, in_flight)):
            while tasks and sum(sizes) + len(parcel) > in_flight:
                sizes.popleft()
                for outcome in await tasks.popleft():
                    yield outcome
            tasks.append(asyncio.create_task(_outcomes(parcel, ask)))
            sizes.append(len(parcel))
            await asyncio.sleep(0)  # what arrived meanwhile is read, though rows may come without a pause
        while tasks:
            for outcome in await tasks.popleft():
                yield outcome
    finally:  # also when whoever reads leaves early
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _parcels(rows: Iterable[Row], most: int) -> Iterator[list[Row]]:
    parcel: list[Row] = []
    size = 0
    for row in rows:
        nbytes = 0 if row.values is None else row.values.nbytes
        if parcel and (len(parcel) == most or size + nbytes > _PARCEL_BYTES):
            yield parcel
            parcel, size = [], 0
        parcel.append(row)
        size += nbytes
    if parcel:
        yield parcel


async def _outcomes(parcel: list[Row], ask: Ask) -> list[Outcome]:
    told = iter(await _think([row.values for row in parcel if row.values is not None], ask))
    outcomes = []
    for row in parcel:
        came = row.error if row.values is None else next(told)
        outcomes.append(Outcome(row, None, came) if isinstance(came, str) else Outcome(row, came, ""))
    return outcomes


async def _think(values: list[Array], ask: Ask) -> list[Answer | str]:
    """An answer for each row, or why there is none."""
    if not values:
        return []
    try:
        answers = (await _asked(np.stack(values), ask)).answers
    except _GIVEN_UP:
        raise
    except ThinkError as error:
        if len(values) == 1:
            return [str(error) or error.code.name]
        # One of them may be at fault: each for itself, then.
        return [told for one in values for told in await _think([one], ask)]
    assert len(answers) == len(values), "each row of a request that did not fail has its answer"
    return list(answers)


async def _asked(values: Array, ask: Ask) -> Result:
    attempt = 0
    while True:
        try:
            return await ask(values)
        except QueueFull as error:
            await asyncio.sleep(retry_delay(error, attempt) or 0.0)
            attempt += 1
