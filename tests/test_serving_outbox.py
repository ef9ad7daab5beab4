"""What a slow reader is sent: the newest ticks, every answer, the end."""

import asyncio

import pytest

from serving.errors import Unavailable
from serving.events import Answer, Failure, Summary, Tick
from serving.outbox import Outbox
from serving.request import StopReason


def tick(row: int, number: int) -> Tick:
    return Tick(row=row, tick=number, certainty=0.5)


def answer(row: int) -> Answer:
    return Answer(row=row, ticks_used=9, answer_tick=9, certainty=0.9, stop_reason=StopReason.CERTAIN, abstained=False)


SUMMARY = Summary([False], [0], 9, 0.0, 0.0)


async def test_events_come_in_order():
    outbox = Outbox(capacity=8)
    events = [tick(0, 1), tick(1, 1), tick(0, 2), answer(0), answer(1), SUMMARY]
    assert [outbox.put(event) for event in events] == [False] * 6
    assert await outbox.take() == events
    assert await outbox.take() == []


async def test_beyond_its_capacity_a_newer_tick_takes_the_place_of_the_rows_older_one():
    outbox = Outbox(capacity=2)
    merged = [outbox.put(event) for event in (tick(0, 1), tick(1, 1), tick(0, 2), tick(0, 3), tick(2, 1), tick(2, 2))]
    assert merged == [False, False, True, True, False, True]
    assert await outbox.take() == [tick(0, 3), tick(1, 1), tick(2, 2)]
    assert outbox.put(tick(0, 4)) is False, "there is room again"


@pytest.mark.parametrize("last", [SUMMARY, Failure(Unavailable("gone"))])
async def test_answers_and_the_end_are_never_lost(last):
    outbox = Outbox(capacity=1)
    for number in range(1, 100):
        outbox.put(tick(0, number))
    outbox.put(answer(0))
    outbox.put(last)
    assert await outbox.take() == [tick(0, 99), answer(0), last]
    assert outbox.closed


async def test_take_waits_for_the_next_event():
    outbox = Outbox(capacity=1)
    taking = asyncio.ensure_future(outbox.take())
    await asyncio.sleep(0)
    assert not taking.done()
    outbox.put(tick(0, 1))
    assert await taking == [tick(0, 1)]


async def test_an_abandoned_outbox_ends_for_its_reader():
    outbox = Outbox(capacity=4)
    outbox.put(tick(0, 1))
    outbox.abandon()
    assert await outbox.take() == []
    other = Outbox(capacity=4)
    taking = asyncio.ensure_future(other.take())
    await asyncio.sleep(0)
    other.abandon()
    assert await taking == []


def link(number: int, kind: type = Answer) -> Answer | Tick:
    event = answer(0) if kind is Answer else tick(0, 1)
    event.link = number
    return event


async def test_a_newer_link_does_not_take_the_place_of_a_tick_before_an_answer():
    outbox = Outbox(capacity=1)
    merged = [outbox.put(event) for event in (link(0, Tick), link(0, Tick), link(0), link(1, Tick), link(1, Tick))]
    assert merged == [False, True, False, False, True]
    assert await outbox.take() == [link(0, Tick), link(0), link(1, Tick)]


@pytest.mark.parametrize(
    ("batch", "told"),
    [pytest.param(1, [1, 2, 1], id="each time"), pytest.param(3, [3], id="in batches: the last one waits for more")],
)
async def test_whoever_makes_answers_is_told_how_many_were_taken(batch, told):
    heard: list[int] = []
    outbox = Outbox(capacity=4, on_read=heard.append, batch=batch)
    for answers in (1, 2, 1):
        for number in range(answers):
            outbox.put(link(number, Tick))
            outbox.put(link(number))
        await outbox.take()
    assert heard == told
    outbox.put(link(9))
    outbox.put(SUMMARY)
    await outbox.take()
    assert heard == told, "nothing more comes: nobody needs to know"
