"""The engine thread and the event loop: neither waits for the other."""

import asyncio
from math import inf

import pytest
from scripted import TICKS, ScriptedChain, request, script
from scripted_server import scripted_server

from serving.errors import Unavailable
from serving.events import Answer, Summary, Tick

SLOW = script([0.1])
SURE = script([0.95])


def chained(links: int, **fields):
    return request(SURE, chain=ScriptedChain([SURE] * (links - 1)), certainty_threshold=0.9, **fields)


async def until(condition):
    async with asyncio.timeout(200):
        while not condition():
            await asyncio.sleep(0.002)


async def test_the_engine_goes_on_for_a_reader_that_reads_nothing_and_older_ticks_make_way():
    async with scripted_server(outbox_capacity=2) as server:
        outbox = server.runner.submit(request(SLOW, SLOW, SLOW, every=1))
        await until(lambda: len(server.ended()) == 3)
        assert server.merged == 3 * (TICKS - 1)
        events = await outbox.take()
    assert sorted((event.row, event.tick) for event in events if isinstance(event, Tick)) == [
        (r, TICKS) for r in range(3)
    ]
    assert [type(event) for event in events[3:]] == [Answer, Answer, Answer, Summary]


async def test_a_request_is_read_while_it_runs():
    async with scripted_server(held=True) as server:
        outbox = server.runner.submit(request(SLOW, every=1))
        server.backend.gate.let(1)
        first = await outbox.take()
        assert [event.tick for event in first] == [1]
        assert not outbox.closed


async def test_cancelling_twice_or_too_late_does_nothing():
    async with scripted_server() as server:
        asked = request(SLOW)
        outbox = server.runner.submit(asked)
        await until(lambda: outbox.closed)
        server.runner.cancel(asked)
        server.runner.cancel(asked)
        assert "CANCELLED" not in server.ended()


async def test_a_runner_that_drains_refuses_and_ends_when_all_is_answered():
    async with scripted_server(seconds_per_tick=0.01) as server:
        outbox = server.runner.submit(request(SLOW))
        draining = asyncio.ensure_future(server.runner.drain(200.0))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="shutting down"):
            server.runner.submit(request(SLOW))
        await draining
        assert outbox.closed


async def test_an_idle_runner_burns_no_ticks():
    async with scripted_server() as server:
        outbox = server.runner.submit(request(SLOW))
        await until(lambda: outbox.closed)
        ticks, reports = server.backend.num_ticks, len(server.reports)
        await asyncio.sleep(0.1)
        assert (server.backend.num_ticks, len(server.reports)) == (ticks, reports)


class TestChains:
    async def test_a_reader_that_never_reads_a_chain_costs_little_and_later_gets_all_of_it(self):
        async with scripted_server(num_slots=1, outbox_capacity=2) as server:
            outbox = server.runner.submit(chained(200, every=1))
            ahead = server.runner.engine.chain_ahead
            await until(lambda: len(server.ended()) == ahead)
            ticks, reports = server.backend.num_ticks, len(server.reports)
            await asyncio.sleep(0.1)
            assert (server.backend.num_ticks, len(server.reports)) == (ticks, reports), "a parked chain burns no steps"
            assert len(outbox._events) == 2 * ahead, "a tick and an answer a link"
            other = server.runner.submit(request(SURE, certainty_threshold=0.9))
            await until(lambda: other.closed)  # the only slot is free
            events = []
            while taken := await outbox.take():
                assert len(taken) <= 2 * ahead + 1
                events += taken
        assert [(type(event), event.link) for event in events[:-1]] == [
            (kind, link) for link in range(200) for kind in (Tick, Answer)
        ]
        assert isinstance(events[-1], Summary)

    async def test_a_parked_chain_ends_at_its_deadline_without_being_asked(self):
        async with scripted_server(chain_ahead=1) as server:
            asked = chained(1000, deadline=server.clock() + 60.0)
            follow = asked.chain.follow

            def follow_late(answer):
                server.clock.ahead = 59.5
                return follow(answer)

            asked.chain.follow = follow_late
            outbox = server.runner.submit(asked)
            await until(lambda: outbox.closed)
            given, summary = await outbox.take()
            assert server.runner.engine.idle
        assert (given.link, type(summary)) == (0, Summary)

    async def test_a_parked_chain_is_cancelled_and_drained_like_any_other(self):
        async with scripted_server() as server:
            leaver, stays = chained(1000, request_id="leaver"), chained(1000)
            server.runner.submit(leaver)
            outbox = server.runner.submit(stays)
            await until(lambda: len(server.ended()) == 2 * server.runner.engine.chain_ahead)
            server.runner.cancel(leaver)
            await server.runner.drain(0.05)
            assert outbox.closed
            assert server.ended()[-2:] == ["CANCELLED", "DEADLINE"]
            assert server.runner.engine.rest_seconds == inf
