"""The clients over a real channel: typed events and errors, and that leaving really cancels."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest
from fake_thinker import CLASSES, ENDLESS, MANIFEST, FakeThinker, served, ticks_to_certain
from grpc_health.v1.health_pb2 import HealthCheckResponse

from protos import ctm_serving_pb2 as pb
from serving import client as api
from serving import errors
from serving.client import Answer, AsyncClient, Client, StopReason, Summary, ThinkError, Tick
from serving.client.errors import from_rpc
from serving.client.message import LONGEST_TIMEOUT_SECONDS

Make = Callable[..., FakeThinker]


@pytest.fixture
def thinker() -> Iterator[FakeThinker]:
    with served(FakeThinker()) as running:
        yield running


@pytest.fixture
def slow() -> Iterator[FakeThinker]:
    with served(FakeThinker(seconds_per_tick=0.05)) as running:
        yield running


def images(rows: int = 1) -> dict[str, Any]:
    return {"image": np.zeros((rows, 1, 28, 28), np.float32)}


def left(thinker: FakeThinker) -> str:
    """Whose client left; fails when nobody does."""
    return thinker.left.get(timeout=200)


def arrive(thinker: FakeThinker, request_id: str) -> None:
    """Wait until the server has a request: one that is cancelled before is never known to it."""
    until = time.monotonic() + 200
    while request_id not in [request.request_id for request in thinker.asked]:
        assert time.monotonic() < until, f"request {request_id} did not arrive"
        time.sleep(0.005)


# ---- the ordinary client


def test_events_come_in_order_and_typed(thinker: FakeThinker):
    with Client(thinker.address) as client, client.think("digits", images(), top_k=2) as thinking:
        events = list(thinking)
    assert [type(event) for event in events] == [Tick, Tick, Tick, Answer, Summary]
    ticks, answer, summary = events[:3], events[3], events[4]
    assert [tick.tick for tick in ticks] == [1, 2, 3]
    assert [tick.top[0].label for tick in ticks] == ["2", "1", "1"]
    assert all(tick.prediction is None for tick in ticks)
    assert (answer.label, answer.ticks_used, answer.stop_reason) == ("1", 3, StopReason.CERTAIN)
    assert answer.prediction.shape == (CLASSES,)
    assert (summary.model, summary.version, summary.abstain_mask) == ("digits", 3, (False,))


def test_predictions_and_details_are_arrays(thinker: FakeThinker):
    options = {"predictions": True, "details": ["attention"]}
    with Client(thinker.address) as client:
        first = next(iter(client.think("digits", images(), **options)))
    assert first.prediction.dtype == np.float32
    assert first.prediction.shape == (CLASSES,)
    assert first.details["attention"].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_every_option_reaches_the_server(thinker: FakeThinker):
    with Client(thinker.address) as client:
        client.answer(
            "digits",
            images(),
            version=3,
            threshold=0.5,
            min_ticks=2,
            max_ticks=7,
            patience=2,
            energy_threshold=1.5,
            energy_delta=0.25,
            disabled=[StopReason.ENERGY],
            answer_rule=api.AnswerRule.LAST,
            abstain_below=0.25,
            top_k=4,
            priority=-1,
            timeout=9.0,
            request_id="mine",
        )
    asked = thinker.asked[0]
    assert (asked.model, asked.version, asked.request_id, asked.priority) == ("digits", 3, "mine", -1)
    assert asked.stop == pb.StopPolicy(
        certainty_threshold=0.5,
        min_ticks=2,
        max_ticks=7,
        patience=2,
        energy_threshold=1.5,
        energy_delta=0.25,
        disabled=[pb.ENERGY],
    )
    assert (asked.answer_rule, asked.abstain_below, asked.timeout_seconds) == (pb.LAST, 0.25, 9.0)
    assert asked.stream == pb.StreamPolicy(every=0, top_k=4)


def test_what_is_not_asked_for_stays_unset(thinker: FakeThinker):
    with Client(thinker.address) as client:
        list(client.think("digits", images()))
    asked = thinker.asked[0]
    assert asked.stop == pb.StopPolicy()
    assert asked.stream == pb.StreamPolicy()
    assert not asked.HasField("abstain_below")
    assert not asked.HasField("timeout_seconds")


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        pytest.param({"timeout": 0}, ValueError, "timeout: got 0, expected more than 0 seconds", id="no time"),
        pytest.param({"timeout": -1.0}, ValueError, "timeout: got -1.0", id="negative time"),
        pytest.param({"timeout": float("nan")}, ValueError, "timeout: got nan", id="time NaN"),
        pytest.param(
            {"timeout": float("inf")}, ValueError, "timeout: got inf, expected .* at most 1e[+]08", id="endless"
        ),
        pytest.param({"timeouts": 1}, TypeError, "no option timeouts; there are .*, timeout, ", id="unknown option"),
        pytest.param({"details": ["attention", 3]}, TypeError, "details holds 3; expected texts alone", id="details"),
        pytest.param({"version": -1}, ValueError, "-1", id="version"),
        pytest.param({"threshold": "high"}, TypeError, "real number", id="threshold"),
    ],
)
def test_what_no_server_could_take_is_refused_at_once(thinker: FakeThinker, options, kind, said):
    with Client(thinker.address) as client, pytest.raises(kind, match=said):
        client.think("digits", images(), **options)
    assert not thinker.asked


def test_the_longest_timeout_is_one(thinker: FakeThinker):
    with Client(thinker.address) as client:
        assert client.answer("digits", images(), timeout=LONGEST_TIMEOUT_SECONDS).answers[0].label == "1"


def test_one_detail_need_not_stand_in_a_list(thinker: FakeThinker):
    with Client(thinker.address) as client:
        assert "attention" in next(iter(client.think("digits", images(), details="attention"))).details


def test_answers_are_in_the_order_of_the_rows(thinker: FakeThinker):
    with Client(thinker.address) as client:
        result = client.answer("digits", images(3), abstain_below=0.99)
    assert [answer.row for answer in result.answers] == [0, 1, 2]
    assert [answer.label for answer in result.answers] == ["1", "2", "3"]
    assert [answer.ticks_used for answer in result.answers] == [ticks_to_certain(row) for row in range(3)]
    assert result.summary.abstain_mask == (True, True, True)


def test_leaving_the_block_cancels(slow: FakeThinker):
    with Client(slow.address) as client:
        with client.think("digits", images(), max_ticks=ENDLESS, request_id="a"):
            arrive(slow, "a")
        assert left(slow) == "a"


def test_breaking_out_of_the_loop_cancels(slow: FakeThinker):
    with Client(slow.address) as client:
        thinking = client.think("digits", images(), max_ticks=ENDLESS, request_id="b")
        for _ in thinking:
            break
        assert left(slow) == "b"


def test_cancel_from_another_thread_ends_the_loop(slow: FakeThinker):
    with Client(slow.address) as client:
        thinking = client.think("digits", images(), max_ticks=ENDLESS, request_id="c")

        def cancel() -> None:
            arrive(slow, "c")
            thinking.cancel()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        with pytest.raises(api.Cancelled):
            list(thinking)
        assert left(slow) == "c"
        canceller.join()


def test_closing_the_client_cancels(slow: FakeThinker):
    client = Client(slow.address)
    thinking = client.think("digits", images(), max_ticks=ENDLESS, request_id="d")
    next(events := iter(thinking))
    client.close()
    with pytest.raises(api.Cancelled):
        list(events)
    assert left(slow) == "d"


def test_events_are_read_once(thinker: FakeThinker):
    with Client(thinker.address) as client:
        thinking = client.think("digits", images())
        list(thinking)
        with pytest.raises(RuntimeError, match="once"):
            iter(thinking)


FULL = errors.QueueFull("64 thoughts wait, limit 64", retry_after_seconds=0.05)

STATUSES = [
    pytest.param(errors.InvalidRequest("got 2, expected 1"), api.InvalidRequest, "INVALID_ARGUMENT", id="invalid"),
    pytest.param(errors.UnknownModel("no such model"), api.UnknownModel, "NOT_FOUND", id="unknown model"),
    pytest.param(FULL, api.QueueFull, "RESOURCE_EXHAUSTED", id="queue full"),
    pytest.param(errors.Unavailable("draining"), api.Unavailable, "UNAVAILABLE", id="draining"),
    pytest.param(errors.DeadlineExceeded("late"), api.DeadlineExceeded, "DEADLINE_EXCEEDED", id="deadline"),
    pytest.param(errors.BackendFailed("broken"), api.BackendFailed, "INTERNAL", id="backend failed"),
]


@pytest.mark.parametrize(("error", "kind", "code"), STATUSES)
def test_each_status_is_an_exception_of_its_own(thinker: FakeThinker, error, kind, code):
    thinker.failures = [error]
    with Client(thinker.address) as client, pytest.raises(kind) as raised:
        client.answer("digits", images())
    assert raised.value.message == str(error)
    assert raised.value.code is grpc.StatusCode[code]
    assert raised.value.retry_after_seconds == (0.05 if error is FULL else None)


def test_a_message_that_never_fits_is_no_full_queue(thinker: FakeThinker):
    with Client(thinker.address, retries=3) as client, pytest.raises(api.InvalidRequest, match="larger than max"):
        client.answer("digits", images(1500))  # 4.7 MB, where a server takes 4 unless told otherwise


def test_an_unreachable_server_is_unavailable():
    with Client("127.0.0.1:1") as client:
        with pytest.raises(api.Unavailable):
            client.answer("digits", images())
        with pytest.raises(api.Unavailable):
            client.list_models()


def test_details_that_are_no_status_are_left_aside():
    class Broken(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.RESOURCE_EXHAUSTED

        def details(self) -> str:
            return "full"

        def trailing_metadata(self) -> list[tuple[str, bytes]]:
            return [("grpc-status-details-bin", b"\xff\xff")]

    error = from_rpc(Broken())
    assert isinstance(error, api.QueueFull)
    assert error.retry_after_seconds is None


def test_retries_wait_as_long_as_the_server_suggests(thinker: FakeThinker):
    thinker.failures = [FULL, FULL]
    begin = time.monotonic()
    with Client(thinker.address, retries=2) as client:
        assert client.answer("digits", images()).answers[0].label == "1"
    assert len(thinker.asked) == 3
    assert time.monotonic() - begin >= 0.1


@pytest.mark.parametrize(
    ("failures", "retries", "asked"),
    [
        pytest.param([FULL, FULL], 1, 2, id="no more than asked for"),
        pytest.param([FULL], 0, 1, id="none unless asked for"),
        pytest.param([errors.InvalidRequest("no")], 5, 1, id="not what will fail again"),
        pytest.param([errors.QueueFull("full", retry_after_seconds=60)], 5, 1, id="not beyond the timeout"),
    ],
)
def test_when_a_request_is_not_sent_again(thinker: FakeThinker, failures, retries, asked):
    thinker.failures = list(failures)
    with Client(thinker.address, retries=retries) as client, pytest.raises(ThinkError):
        client.answer("digits", images(), timeout=50.0)
    assert len(thinker.asked) == asked


def test_a_request_is_not_sent_again_once_an_event_has_arrived(thinker: FakeThinker):
    thinker.break_after, thinker.late_failure = 2, errors.Unavailable("gone")
    events = []
    with Client(thinker.address, retries=5) as client, pytest.raises(api.Unavailable):
        events.extend(client.think("digits", images()))
    assert len(thinker.asked) == 1


def test_a_timeout_is_a_deadline(slow: FakeThinker):
    slow.seconds_per_tick = 2.0  # never heeds the timeout: the call's own deadline ends it
    with Client(slow.address) as client, pytest.raises(api.DeadlineExceeded):
        client.answer("digits", images(), timeout=0.1)


def test_models_are_listed_and_described(thinker: FakeThinker):
    with Client(thinker.address) as client:
        (info,) = client.list_models()
        assert (info.name, info.version, info.backend) == ("digits", 3, "fake")
        assert client.get_model("digits") == MANIFEST
        with pytest.raises(api.UnknownModel, match="there is digits"):
            client.get_model("letters")


def test_a_client_that_balances_asks_every_address_that_serves_and_no_other(thinker: FakeThinker):
    with served(FakeThinker()) as other, Client(f"ipv4:{thinker.address},{other.address}", balance=True) as client:

        def asked_until(enough: Callable[[list[int]], bool]) -> None:
            """Ask until the numbers of requests that each got, of the last eight, are as wished."""
            until = time.monotonic() + 200
            while True:
                before = [len(thinker.asked), len(other.asked)]
                for _ in range(8):
                    client.answer("digits", images())
                got = [now - so_far for now, so_far in zip([len(thinker.asked), len(other.asked)], before, strict=True)]
                if enough(got):
                    return
                assert time.monotonic() < until, got

        asked_until(lambda got: got == [4, 4])
        thinker.health.set("", HealthCheckResponse.NOT_SERVING)
        asked_until(lambda got: got == [0, 8])
        thinker.health.set("", HealthCheckResponse.SERVING)
        asked_until(lambda got: got == [4, 4])


class Sleeps:
    """Stands for the module `time`: it passes only while somebody sleeps."""

    def __init__(self, wakes: Callable[[float], object] = lambda _: None) -> None:
        self.now, self.wakes = 0.0, wakes

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.wakes(self.now)


def test_ready_is_waited_for(thinker: FakeThinker, monkeypatch: pytest.MonkeyPatch):
    def serve(now: float) -> None:
        thinker.health.set("", HealthCheckResponse.SERVING if now > 0.5 else HealthCheckResponse.NOT_SERVING)

    serve(0.0)
    monkeypatch.setattr("serving.client.sync.time", Sleeps(serve))
    with Client(thinker.address) as client:
        client.wait_ready(20)
        with pytest.raises(api.Unavailable, match=r"letters at .* not ready after 20 s: NOT_FOUND"):
            client.wait_ready(20, model="letters")


# ---- asyncio


async def test_async_events_and_answers(thinker: FakeThinker):
    async with AsyncClient(thinker.address) as client:
        await client.wait_ready(200)
        async with client.think("digits", images(), top_k=1) as thinking:
            events = [event async for event in thinking]
        result = await client.answer("digits", images(2))
        models = await client.list_models()
        manifest = await client.get_model("digits")
    assert [type(event) for event in events] == [Tick, Tick, Tick, Answer, Summary]
    assert [answer.label for answer in result.answers] == ["1", "2"]
    assert (models[0].name, manifest.version) == ("digits", 3)


@pytest.mark.parametrize("way", ["block", "break", "task", "cancel"])
async def test_leaving_cancels_an_async_request(slow: FakeThinker, way: str):
    async with AsyncClient(slow.address) as client:
        thinking = client.think("digits", images(), max_ticks=ENDLESS, request_id=way)
        if way == "block":
            async with thinking:
                await asyncio.to_thread(arrive, slow, way)
        elif way == "break":
            async for _ in thinking:
                break
        elif way == "task":
            task = asyncio.create_task(thinking.result())
            await asyncio.to_thread(arrive, slow, way)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await asyncio.to_thread(arrive, slow, way)
            asyncio.get_running_loop().call_later(0.1, thinking.cancel)
            with pytest.raises(api.Cancelled):
                await thinking.result()
        assert await asyncio.to_thread(left, slow) == way


@pytest.mark.parametrize(("error", "kind", "code"), STATUSES)
async def test_async_errors_are_typed(thinker: FakeThinker, error, kind, code):
    thinker.failures = [error]
    async with AsyncClient(thinker.address) as client:
        with pytest.raises(kind) as raised:
            await client.answer("digits", images())
    assert raised.value.code is grpc.StatusCode[code]
    assert raised.value.retry_after_seconds == (0.05 if error is FULL else None)


async def test_async_retries(thinker: FakeThinker):
    thinker.failures = [FULL, errors.Unavailable("starting")]
    async with AsyncClient(thinker.address, retries=2) as client:
        assert (await client.answer("digits", images())).answers[0].label == "1"
    assert len(thinker.asked) == 3


async def test_cancel_ends_the_wait_for_another_try(thinker: FakeThinker):
    thinker.failures = [errors.QueueFull("full", retry_after_seconds=60)]
    async with AsyncClient(thinker.address, retries=1) as client:
        thinking = client.think("digits", images())
        asyncio.get_running_loop().call_later(0.1, thinking.cancel)
        async with asyncio.timeout(50):
            with pytest.raises(api.Cancelled):
                await thinking.result()


async def test_cancel_in_the_moment_of_another_try_is_heeded(thinker: FakeThinker, monkeypatch: pytest.MonkeyPatch):
    thinker.failures = [FULL]
    async with AsyncClient(thinker.address, retries=1) as client:
        thinking = client.think("digits", images())

        async def cancelled_as_time_is_over(waiting: Coroutine[Any, Any, Any], _: float) -> None:
            waiting.close()
            thinking.cancel()
            raise TimeoutError

        monkeypatch.setattr("serving.client.async_thinking.asyncio.wait_for", cancelled_as_time_is_over)
        with pytest.raises(api.Cancelled):
            await thinking.result()
    assert len(thinker.asked) == 1


# ---- many requests over one call


async def test_a_session_keeps_requests_apart(slow: FakeThinker):
    async with AsyncClient(slow.address) as client, client.session() as session:
        thinkings = [await session.think("digits", images(rows), top_k=1) for rows in (3, 1, 2)]
        results = await asyncio.gather(*(thinking.result() for thinking in thinkings))
        assert (await session.answer("digits", images())).answers[0].label == "1"
    assert [len(result.answers) for result in results] == [3, 1, 2]
    assert len({request.request_id for request in slow.asked}) == 4


async def test_one_request_fails_alone(slow: FakeThinker):
    async with AsyncClient(slow.address) as client, client.session() as session:
        good = aiter(await session.think("digits", images()))
        await anext(good)  # it is past the place where the next one to begin will fail
        bad = await session.think("letters", images())
        with pytest.raises(api.UnknownModel, match="letters"):
            await bad.result()
        slow.failures = [FULL]
        full = await session.think("digits", images())
        with pytest.raises(api.QueueFull) as raised:
            await full.result()
        assert raised.value.retry_after_seconds == 0.05
        assert [event.ticks_used async for event in good if isinstance(event, Answer)] == [3]


@pytest.mark.parametrize("way", ["block", "break", "cancel"])
async def test_one_request_is_cancelled_alone(slow: FakeThinker, way: str):
    async with AsyncClient(slow.address) as client, client.session() as session:
        other = await session.think("digits", images())
        thinking = await session.think("digits", images(), max_ticks=ENDLESS, request_id=way)
        if way == "block":
            async with thinking:
                await asyncio.to_thread(arrive, slow, way)
        elif way == "break":
            async for _ in thinking:
                break
        else:
            await asyncio.to_thread(arrive, slow, way)
            asyncio.get_running_loop().call_later(0.1, thinking.cancel)
            with pytest.raises(api.Cancelled):
                await thinking.result()
        assert await asyncio.to_thread(left, slow) == way
        assert (await other.result()).answers[0].ticks_used == 3


async def test_the_end_of_a_session_lets_running_thoughts_finish(slow: FakeThinker):
    async with AsyncClient(slow.address) as client:
        async with client.session() as session:
            thinking = await session.think("digits", images())
        assert (await thinking.result()).answers[0].label is None  # no top_k asked for
        with pytest.raises(api.Unavailable):
            await session.think("digits", images())


async def test_an_error_in_the_block_cancels_the_session(slow: FakeThinker):
    async with AsyncClient(slow.address) as client:
        with suppress(LookupError):
            async with client.session() as session:
                thinking = await session.think("digits", images(), max_ticks=ENDLESS, request_id="lost")
                await anext(events := aiter(thinking))
                raise LookupError
        with pytest.raises(api.Cancelled):
            [event async for event in events]
        assert await asyncio.to_thread(left, slow) == "lost"


async def test_a_session_outlives_a_caller_who_gave_up_waiting(slow: FakeThinker):
    async with AsyncClient(slow.address) as client, client.session(max_in_flight=1) as session:
        first = await session.think("digits", images())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await session.think("digits", images())
        assert (await first.result()).summary.ticks_used == 3
        assert (await session.answer("digits", images())).summary.ticks_used == 3
    assert len(slow.asked) == 2


async def test_an_id_in_flight_is_refused(slow: FakeThinker):
    async with AsyncClient(slow.address) as client, client.session() as session:
        await session.think("digits", images(), request_id="twin")
        with pytest.raises(ValueError, match="twin"):
            await session.think("digits", images(), request_id="twin")


async def test_when_the_call_fails_all_its_requests_do():
    async with AsyncClient("127.0.0.1:1") as client, client.session() as session:
        with suppress(ThinkError):  # it may have failed already
            thinking = await session.think("digits", images())
            with pytest.raises(api.Unavailable):
                await thinking.result()
        with pytest.raises(api.Unavailable):
            await session.think("digits", images())
