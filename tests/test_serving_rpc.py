"""Thinker over a real channel: what callers see, what they get wrong, and how they leave."""

import asyncio
import re
import sys
import time
from contextlib import aclosing
from typing import Any, cast

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from scripted import TICKS, script
from scripted_server import BUNDLE, UNBOUNDED, ScriptedServer, endless, scripted_server, think

from protos import ctm_serving_pb2 as pb
from serving import rpc
from serving.events import Answer, Tick
from serving.models import Served
from serving.request import StopReason
from serving.runner import Runner

RISING = [0.1, 0.2, 0.5, 0.6, 0.7, 0.9, 0.95, 0.99]
SURE = script([0.95])
SLOW = script([0.1])


async def events(server: ScriptedServer, request: pb.ThinkRequest, **call: Any) -> list[pb.ThinkEvent]:
    return [event async for event in server.stub.Think(request, **call)]


async def error(server: ScriptedServer, request: pb.ThinkRequest, **call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await events(server, request, **call)
    return raised.value


async def until(condition: Any) -> None:
    async with asyncio.timeout(200):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_thought_is_watched_tick_by_tick_until_it_is_certain():
    async with scripted_server() as server:
        got = await events(
            server, think(script(RISING, classes=[1]), stream=pb.StreamPolicy(top_k=1), request_id="mine")
        )
    assert {event.request_id for event in got} == {"mine"}
    ticks = [tick for event in got for tick in event.ticks.ticks]
    assert [tick.tick for tick in ticks] == [1, 2, 3, 4, 5, 6]
    assert [tick.certainty for tick in ticks] == pytest.approx(RISING[:6])
    assert {tick.top[0].label for tick in ticks} == {"one"}
    answer, summary = got[-2].answer, got[-1].summary
    assert (answer.ticks_used, answer.answer_tick, answer.stop_reason) == (6, 6, pb.CERTAIN)
    assert np.frombuffer(answer.prediction.data, "<f4").tolist() == [0, 6, 0]
    assert (summary.ticks_used, list(summary.abstain_mask)) == (6, [False])
    assert (summary.model, summary.version) == ("script", 1)
    assert summary.think_seconds >= 0


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        pytest.param(3, [5, 2], id="small ones together"),
        pytest.param(2**16, [2, 2, 1, 2], id="large ones a few at a time"),
        pytest.param(2**18, [1, 1, 1, 1, 1, 1, 1], id="a very large one alone"),
    ],
)
def test_no_message_grows_with_the_ticks_that_wait(values, messages):
    ticks = [Tick(row, 1, 0.5, prediction=np.zeros(values, np.float32)) for row in range(7)]
    answer = Answer(0, 1, 1, 0.5, StopReason.CERTAIN, abstained=False)
    sent = rpc.messages("mine", [*ticks[:5], answer, *ticks[5:]], Served(BUNDLE, cast(Runner, None), "scripted"))
    assert [len(event.ticks.ticks) for event in sent if event.HasField("ticks")] == messages
    told = [tick.row for event in sent for tick in event.ticks.ticks]
    assert told == list(range(7))
    assert all(event.ByteSize() < 2**21 for event in sent)


async def test_answers_only_and_every_row_on_its_own():
    request = think(SURE, script(RISING), SLOW, stream=pb.StreamPolicy(every=0), abstain_below=0.5)
    async with scripted_server(num_slots=2) as server:
        got = await events(server, request)
    assert [event.WhichOneof("event") for event in got] == ["answer"] * 3 + ["summary"]
    answers = sorted((event.answer for event in got[:-1]), key=lambda answer: answer.row)
    assert [(answer.ticks_used, answer.abstained) for answer in answers] == [(1, False), (6, False), (TICKS, True)]
    assert list(got[-1].summary.abstain_mask) == [False, False, True]
    assert list(got[-1].summary.abstentions) == [0, 0, 1]


def spoilt(**fields: Any) -> pb.ThinkRequest:
    """A sound request with the first input changed."""
    request = think(SURE)
    for name, value in fields.items():
        if name == "shape":
            request.inputs[0].shape[:] = value
        else:
            setattr(request.inputs[0], name, value)
    return request


def without_inputs(request: pb.ThinkRequest) -> pb.ThinkRequest:
    del request.inputs[:]
    return request


NAN = np.full(TICKS, np.nan, "<f4").tobytes()
INF = np.full(TICKS, -np.inf, "<f4").tobytes()
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        pytest.param(think(SURE), None, "", id="sound"),
        pytest.param(pb.ThinkRequest(model="other"), grpc.StatusCode.NOT_FOUND, r"'other'.*script", id="unknown model"),
        pytest.param(
            pb.ThinkRequest(model="script", version=7),
            grpc.StatusCode.NOT_FOUND,
            r"version 7.*\b1\b",
            id="unknown version",
        ),
        pytest.param(
            pb.ThinkRequest(model="x" * 100_000),
            grpc.StatusCode.NOT_FOUND,
            r"xxx\.\.\.; served are script",
            id="huge name",
        ),
        pytest.param(spoilt(name="certainty"), INVALID, r"certainty.*certainties", id="wrong name"),
        pytest.param(without_inputs(think(SURE)), INVALID, r"certainties", id="no inputs"),
        pytest.param(spoilt(shape=[1, 9]), INVALID, r"certainties.*\[1, 9\].*rows, 8", id="wrong shape"),
        pytest.param(spoilt(shape=[]), INVALID, r"certainties.*rows, 8", id="no shape"),
        pytest.param(spoilt(shape=[-1, 8]), INVALID, r"-1.*1 to 16", id="negative rows"),
        pytest.param(spoilt(shape=[2**62, 8]), INVALID, r"1 to 16", id="absurd rows"),
        pytest.param(spoilt(shape=[2, 8]), INVALID, r"certainties.*32 bytes.*64", id="too few bytes"),
        pytest.param(spoilt(datatype="FP64"), INVALID, r"certainties.*FP64.*FP32", id="wrong datatype"),
        pytest.param(spoilt(data=b"123"), INVALID, r"certainties.*3 bytes.*32", id="wrong size of bytes"),
        pytest.param(spoilt(data=NAN), INVALID, r"certainties.*nan.*finite", id="NaN"),
        pytest.param(spoilt(data=INF), INVALID, r"certainties.*inf.*finite", id="infinity"),
        pytest.param(spoilt(shape=[0, 8], data=b""), INVALID, r"rows.*\b0\b.*1 to 16", id="zero rows"),
        pytest.param(think(*[SURE] * 17), INVALID, r"rows.*17.*1 to 16", id="more than max_rows"),
        pytest.param(
            think(SURE, stop=pb.StopPolicy(certainty_threshold=1.5)),
            INVALID,
            r"certainty_threshold.*1\.5.*0.*1",
            id="above 1",
        ),
        pytest.param(
            think(SURE, stop=pb.StopPolicy(certainty_threshold=-0.1)),
            INVALID,
            r"certainty_threshold.*-0\.1",
            id="below 0",
        ),
        pytest.param(
            think(SURE, stop=pb.StopPolicy(certainty_threshold=float("nan"))),
            INVALID,
            r"certainty_threshold.*nan",
            id="nan",
        ),
        pytest.param(think(SURE, abstain_below=2), INVALID, r"abstain_below.*2", id="abstain above 1"),
        pytest.param(
            think(SURE, stop=pb.StopPolicy(min_ticks=5, max_ticks=4)), INVALID, r"min_ticks.*5.*4", id="min above max"
        ),
        pytest.param(
            think(SURE, stop=pb.StopPolicy(max_ticks=9)), INVALID, r"max_ticks.*9.*8", id="above the tick cap"
        ),
        pytest.param(think(SURE, stop=pb.StopPolicy(max_ticks=0)), INVALID, r"max_ticks.*0", id="no ticks"),
        pytest.param(think(SURE, chain=pb.ChainPolicy(max_links=2)), INVALID, r"links|chain", id="no chain here"),
        pytest.param(think(SURE, timeout_seconds=-1), INVALID, r"timeout_seconds.*-1", id="negative timeout"),
    ],
)
async def test_bad_requests_are_refused_with_what_was_met_and_expected(request_, code, message):
    async with scripted_server() as server:
        if code is None:
            assert len(await events(server, request_)) == 3
            return
        refused = await error(server, request_)
        assert refused.code() is code
        assert re.search(message, refused.details()), refused.details()
        assert (await events(server, think(SURE)))[-1].HasField("summary"), "the next request is served"
        assert [refusal[:2] for refusal in server.refusals] == [("script", 1) if code is INVALID else ("", 0)]


@pytest.mark.parametrize("every", [2**31, 2**32 - 1])
async def test_ticks_sent_so_rarely_that_none_ever_is_harm_nobody(every):
    async with scripted_server() as server:
        got = await events(server, think(SLOW, stream=pb.StreamPolicy(every=every)))
        assert [event.WhichOneof("event") for event in got] == ["answer", "summary"]
        assert (await events(server, think(SURE)))[-1].HasField("summary")


@pytest.mark.parametrize("method", ["Think", "ThinkStream", "GetModel"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(method, caplog):
    async with scripted_server() as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            path = f"/ctm.serving.v1.Thinker/{method}"
            if method == "ThinkStream":
                stream = channel.stream_stream(path, None, pb.ThinkEvent.FromString)(iter([b"\xff\xff"]))
                assert [event.failure.code async for event in stream] == [pb.INVALID_ARGUMENT]
            else:
                ask = channel.unary_stream if method == "Think" else channel.unary_unary
                assert await ask(path, None, None)(b"\xff\xff").code() is INVALID
        assert (await events(server, think(SURE)))[-1].HasField("summary")
    assert not caplog.records, "what a stranger sends is no news"


async def test_a_client_that_is_killed_while_it_is_written_to_frees_its_slots(caplog):
    """A process of its own, killed without a goodbye."""
    code = (
        "import sys, grpc\n"
        "from protos import ctm_serving_pb2 as pb, ctm_serving_pb2_grpc as pb_grpc\n"
        "request = pb.ThinkRequest.FromString(bytes.fromhex(sys.argv[2]))\n"
        "stub = pb_grpc.ThinkerStub(grpc.insecure_channel(sys.argv[1]))\n"
        "commands = iter([pb.ThinkCommand(think=request)])\n"
        "calls = stub.Think(request), stub.ThinkStream(commands)\n"
        "print(next(calls[0]).request_id, next(calls[1]).request_id, flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    async with scripted_server(bundle=UNBOUNDED, seconds_per_tick=0.02) as server:
        message = endless(3, request_id="mine").SerializeToString().hex()
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, server.address, message, stdout=-1)
        assert await process.stdout.readline() == b"mine mine\n"
        process.kill()
        await process.wait()
        await until(lambda: server.ended().count("CANCELLED") == 6)
        assert server.runner.engine.idle
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_full_queue_says_when_to_come_back():
    async with scripted_server(bundle=UNBOUNDED, num_slots=1, max_waiting=2, seconds_per_tick=0.02) as server:
        running = asyncio.ensure_future(events(server, endless()))
        await until(lambda: server.backend.num_ticks)
        waiting = asyncio.ensure_future(events(server, endless(2)))
        await until(lambda: server.num_waiting == 2)
        refused = await error(server, think(SURE))
        running.cancel()
        waiting.cancel()
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = Status.FromString(dict(refused.trailing_metadata())["grpc-status-details-bin"])
    retry = RetryInfo()
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() > 0


async def test_a_draining_server_finishes_what_runs_and_refuses_what_comes():
    async with scripted_server(seconds_per_tick=0.02) as server:
        running = asyncio.ensure_future(events(server, think(SLOW)))
        await until(lambda: server.backend.num_ticks)
        draining = asyncio.ensure_future(server.runner.drain(200.0))
        await asyncio.sleep(0)
        assert (await error(server, think(SURE))).code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.stub.ThinkStream().read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await running)[-2].answer.stop_reason == pb.TICK_BUDGET
        await draining


async def test_when_the_grace_is_over_what_waits_is_unavailable_and_what_runs_answers():
    async with scripted_server(bundle=UNBOUNDED, num_slots=1, seconds_per_tick=0.02) as server:
        running = asyncio.ensure_future(events(server, endless()))
        await until(lambda: server.backend.num_ticks)
        waiting = asyncio.ensure_future(error(server, think(SURE)))
        await until(lambda: server.num_waiting == 1)
        await server.runner.drain(0.05)
        assert (await running)[-2].answer.stop_reason == pb.DEADLINE
        assert (await waiting).code() is grpc.StatusCode.UNAVAILABLE


async def test_what_was_answered_before_a_failure_is_sent_before_its_status():
    async with scripted_server() as server:
        tick = server.backend._tick

        def fail_the_second(rows: int, side: int, details: bool) -> None:
            server.backend.fail_next_tick = server.backend.num_ticks == 1
            tick(rows, side, details)

        server.backend._tick = fail_the_second
        call = server.stub.Think(think(SURE, SLOW, stream=pb.StreamPolicy(every=0)))
        first = await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert (first.answer.row, first.answer.stop_reason) == (0, pb.CERTAIN)
    assert raised.value.code() == grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("what", ["fail_next_encode", "fail_next_tick"])
async def test_a_failing_backend_is_internal_for_those_it_held_and_serves_the_next(what):
    async with scripted_server() as server:
        setattr(server.backend, what, True)
        failed = await error(server, think(SLOW, SLOW))
        assert failed.code() is grpc.StatusCode.INTERNAL
        assert (await events(server, think(SURE)))[-2].answer.stop_reason == pb.CERTAIN


class TestDeadline:
    @pytest.mark.parametrize("how", ["call", "request", "both"])
    async def test_an_anytime_answer_is_in_time(self, how):
        request = think(SLOW, **({} if how == "call" else {"timeout_seconds": 60 if how == "request" else 600}))
        async with scripted_server(margin=2.0) as server:
            server.put_forward(59.0, after=3)
            begin = time.monotonic()
            got = await events(server, request, timeout=None if how == "request" else 60)
            assert time.monotonic() - begin < 60
        answer = got[-2].answer
        assert answer.stop_reason == pb.DEADLINE
        assert answer.ticks_used == 3
        assert answer.answer_tick == 1
        assert got[-1].summary.ticks_used == answer.ticks_used

    async def test_a_request_that_never_ticked_exceeds_its_deadline(self):
        async with scripted_server(bundle=UNBOUNDED, num_slots=1, seconds_per_tick=0.02) as server:
            running = asyncio.ensure_future(events(server, endless()))
            await until(lambda: server.backend.num_ticks)
            late = await error(server, think(SURE, timeout_seconds=0.1))
            assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            running.cancel()


async def test_leaving_frees_the_slot_before_the_next_tick():
    async with scripted_server(num_slots=1, held=True) as server:
        call = server.stub.Think(think(SLOW))
        server.backend.gate.let(1)
        await call.read()
        call.cancel()
        await until(lambda: not server.num_requests)
        server.backend.gate.open()
        await until(lambda: "CANCELLED" in server.ended())
        cancelled = next(end for report, _ in server.reports for end in report.ended if end.reason.name == "CANCELLED")
        assert cancelled.ticks_used <= 2, "the tick that it may have been in when the news came is the last"
        assert (await events(server, think(SURE)))[-2].answer.stop_reason == pb.CERTAIN
        assert server.runner.engine.idle


async def test_calls_that_nobody_reads_yet_lose_no_answer_and_hold_nobody_up():
    async with scripted_server(outbox_capacity=2) as server:
        calls = [server.stub.Think(think(*[SLOW] * 4, request_id=str(k))) for k in range(8)]
        await until(lambda: server.ended().count("TICK_BUDGET") == 32)
        for call in calls:
            got = [event async for event in call]
            assert sorted(event.answer.row for event in got if event.HasField("answer")) == [0, 1, 2, 3]
            for row in range(4):
                ticks = [tick.tick for event in got for tick in event.ticks.ticks if tick.row == row]
                assert ticks == sorted(set(ticks)), "ticks come in order, none twice"
                assert ticks[-1] == TICKS, "the newest is never the one that is left out"
            assert got[-1].HasField("summary")


class TestStream:
    async def send(self, call: Any, *commands: pb.ThinkCommand) -> None:
        for command in commands:
            await call.write(command)

    async def collect(self, call: Any) -> dict[str, list[pb.ThinkEvent]]:
        got: dict[str, list[pb.ThinkEvent]] = {}
        while (event := await call.read()) is not grpc.aio.EOF:
            got.setdefault(event.request_id, []).append(event)
        return got

    async def test_answers_come_as_each_is_certain_and_the_end_of_input_lets_thoughts_finish(self):
        async with scripted_server(held=True) as server:
            call = server.stub.ThinkStream()
            await self.send(
                call,
                pb.ThinkCommand(think=think(SLOW, request_id="slow", stream=pb.StreamPolicy(every=0))),
                pb.ThinkCommand(think=think(SURE, request_id="fast", stream=pb.StreamPolicy(every=0))),
            )
            await call.done_writing()
            await until(lambda: server.num_requests == 2)
            server.backend.gate.open()
            order = [(event.request_id, event.WhichOneof("event")) async for event in call]
        assert order == [("fast", "answer"), ("fast", "summary"), ("slow", "answer"), ("slow", "summary")]

    @pytest.mark.parametrize(
        ("command", "request_id", "code"),
        [
            pytest.param(pb.ThinkCommand(think=think(SURE)), "", pb.INVALID_ARGUMENT, id="empty id"),
            pytest.param(
                pb.ThinkCommand(think=think(SURE, request_id="a")), "a", pb.INVALID_ARGUMENT, id="id in flight"
            ),
            pytest.param(
                pb.ThinkCommand(think=pb.ThinkRequest(request_id="b", model="no")),
                "b",
                pb.NOT_FOUND,
                id="unknown model",
            ),
            pytest.param(pb.ThinkCommand(), "", pb.INVALID_ARGUMENT, id="neither think nor cancel"),
        ],
    )
    async def test_one_request_fails_and_the_call_goes_on(self, command, request_id, code):
        async with scripted_server(held=True) as server:
            call = server.stub.ThinkStream()
            first = pb.ThinkCommand(think=think(SLOW, request_id="a", stream=pb.StreamPolicy(every=0)))
            await self.send(call, first, command, pb.ThinkCommand(think=think(SURE, request_id="c")))
            await call.done_writing()
            failed = await call.read()
            server.backend.gate.open()
            got = await self.collect(call)
        assert (failed.request_id, failed.failure.code) == (request_id, code)
        assert failed.failure.message
        assert not [event for events in got.values() for event in events if event.HasField("failure")]
        assert got["a"][-1].HasField("summary")
        assert got["c"][-1].HasField("summary")

    async def test_a_queue_that_is_full_fails_one_request_with_the_time_to_wait(self):
        async with scripted_server(num_slots=1, max_waiting=1, seconds_per_tick=0.05) as server:
            call = server.stub.ThinkStream()
            await self.send(call, pb.ThinkCommand(think=think(SLOW, request_id="a")))
            await until(lambda: server.backend.num_ticks)
            await self.send(call, pb.ThinkCommand(think=think(SURE, SURE, request_id="b")))
            await call.done_writing()
            got = await self.collect(call)
        assert got["b"][0].failure.code == pb.RESOURCE_EXHAUSTED
        assert got["b"][0].failure.retry_after_seconds > 0
        assert got["a"][-1].HasField("summary")

    async def test_a_cancelled_request_says_nothing_more_and_frees_its_slot(self):
        async with scripted_server(bundle=UNBOUNDED, num_slots=1, seconds_per_tick=0.02) as server:
            call = server.stub.ThinkStream()
            await self.send(call, pb.ThinkCommand(think=endless(request_id="a")))
            await call.read()
            await self.send(
                call,
                pb.ThinkCommand(cancel=pb.Cancel(request_id="a")),
                pb.ThinkCommand(cancel=pb.Cancel(request_id="never was")),
                pb.ThinkCommand(think=think(SURE, request_id="a")),  # the id is free again
            )
            await call.done_writing()
            got = await self.collect(call)
        kinds = [event.WhichOneof("event") for event in got["a"]]
        assert kinds[-2:] == ["answer", "summary"]
        assert kinds.count("answer") == 1
        assert got["a"][-2].answer.stop_reason == pb.CERTAIN
        assert "CANCELLED" in server.ended()

    async def test_an_absurd_id_fails_alone(self):
        async with scripted_server() as server:
            call = server.stub.ThinkStream()
            long = pb.ThinkCommand(think=think(SURE, request_id="x" * 1_000_000))
            await self.send(call, long, pb.ThinkCommand(think=think(SURE, request_id="b")))
            await call.done_writing()
            got = await self.collect(call)
        assert got["x" * 256][0].failure.code == pb.INVALID_ARGUMENT
        assert got["b"][-1].HasField("summary")

    async def test_the_id_of_a_cancelled_request_is_free_at_once_even_for_a_slow_reader(self):
        async with scripted_server(num_slots=1, seconds_per_tick=0.02) as server:
            call = server.stub.ThinkStream()
            for _ in range(20):
                await self.send(
                    call,
                    pb.ThinkCommand(think=think(SLOW, request_id="a")),
                    pb.ThinkCommand(cancel=pb.Cancel(request_id="a")),
                )
            await self.send(call, pb.ThinkCommand(think=think(SURE, request_id="a")))
            await call.done_writing()
            got = await self.collect(call)
        assert not [event for event in got["a"] if event.HasField("failure")]
        assert got["a"][-2].answer.stop_reason == pb.CERTAIN

    async def test_an_idle_call_ends_when_the_server_hangs_up_and_a_running_one_is_answered_first(self):
        async with scripted_server(seconds_per_tick=0.02) as server:
            idle, busy = server.stub.ThinkStream(), server.stub.ThinkStream()
            await self.send(busy, pb.ThinkCommand(think=think(SLOW, request_id="a")))
            await busy.read()
            await self.send(idle, pb.ThinkCommand(think=think(SURE, request_id="b")))
            await self.collect_one(idle)
            server.thinker.hang_up()
            assert await idle.read() is grpc.aio.EOF
            assert (await self.collect(busy))["a"][-1].HasField("summary")

    async def collect_one(self, call: Any) -> None:
        while not (await call.read()).HasField("summary"):
            pass

    async def test_leaving_the_call_cancels_everything_on_it(self):
        async with scripted_server(bundle=UNBOUNDED, num_slots=2, seconds_per_tick=0.02) as server:
            call = server.stub.ThinkStream()
            await self.send(call, *(pb.ThinkCommand(think=endless(request_id=str(k))) for k in range(5)))
            await until(lambda: server.num_requests == 5)
            await call.read()
            call.cancel()
            await until(lambda: server.ended().count("CANCELLED") == 5)
            assert server.runner.engine.idle

    async def test_a_client_that_only_sends_is_stopped_by_flow_control_not_by_memory(self):
        async with scripted_server(max_stream_requests=3, seconds_per_tick=0.005) as server:
            call = server.stub.ThinkStream()
            quiet = pb.StreamPolicy(every=0)

            async def send() -> None:
                for k in range(20):
                    await call.write(pb.ThinkCommand(think=think(SURE, request_id=str(k), stream=quiet)))
                await call.done_writing()

            sending = asyncio.ensure_future(send())
            got = await self.collect(call)
            await sending
        assert len(got) == 20
        assert max(report.num_running + report.num_waiting for report, _ in server.reports) <= 3


async def test_closing_a_response_iterator_early_cancels_the_thought():
    async with scripted_server(bundle=UNBOUNDED, num_slots=1, seconds_per_tick=0.02) as server:
        call = server.stub.Think(endless())
        async with aclosing(call.__aiter__()) as stream:
            async for _ in stream:
                break
        call.cancel()
        await until(lambda: "CANCELLED" in server.ended())
        assert server.runner.engine.idle


async def test_an_engine_that_breaks_fails_its_requests_and_takes_no_more():
    async with scripted_server(seconds_per_tick=0.01) as server:
        server.runner.engine.scheduler.record = None  # an invariant of ours, broken
        assert (await error(server, think(SLOW))).code() is grpc.StatusCode.INTERNAL
        assert (await error(server, think(SLOW))).code() is grpc.StatusCode.UNAVAILABLE
