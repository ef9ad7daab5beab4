"""Scoring: every row has its outcome, in order and in its own name, whoever thinks and whatever else goes wrong."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from serving.client import (
    Answer,
    AsyncClient,
    BackendFailed,
    InvalidRequest,
    QueueFull,
    Result,
    StopReason,
    Summary,
    ThinkError,
    Unavailable,
)
from serving.errors import BundleRefused
from serving.local import find_bundle
from serving.request import Array
from serving.scoring import BatchScorer, LocalThinker, Outcome, Row, score
from serving.server import Server
from serving.settings import ServerConfig
from serving.terminal.images import UnfitInput

SUMMARY = Summary(abstain_mask=(), abstentions=(), ticks_used=0, queue_seconds=0, think_seconds=0, model="m", version=1)


def rows(count: int, *, bad: int | None = None) -> Iterator[Row]:
    """Rows that each hold their own number."""
    for index in range(count):
        if index == bad:
            yield Row(source="rows", index=index, error="no number")
        else:
            yield Row(source="rows", index=index, values=np.array([index], np.float32))


class Echo:
    """Says of each row the number that it holds; `certainty` is that number, too."""

    def __init__(self, *failures: ThinkError) -> None:
        self.failures = list(failures)
        self.fails_at: float | None = None
        self.in_flight = self.most_in_flight = self.calls = 0

    async def __call__(self, values: Array) -> Result:
        self.calls += 1
        self.in_flight += len(values)
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            await asyncio.sleep(0.001 * (self.calls % 3))  # so that later ones are often answered first
        finally:
            self.in_flight -= len(values)
        if self.failures:
            raise self.failures.pop(0)
        if self.fails_at in values:
            raise BackendFailed("the model failed on a tick")
        answers = [
            Answer(
                row=row,
                link=0,
                ticks_used=1,
                answer_tick=1,
                certainty=float(value),
                stop_reason=StopReason.CERTAIN,
                abstained=False,
            )
            for row, (value,) in enumerate(values)
        ]
        return Result(answers=answers, summary=SUMMARY)


async def scored(count: int, ask: Echo, *, bad: int | None = None, in_flight: int = 256) -> list[Outcome]:
    return [outcome async for outcome in score(rows(count, bad=bad), ask, in_flight=in_flight)]


def told(outcomes: list[Outcome]) -> list[float | str]:
    return [one.error if one.answer is None else one.answer.certainty for one in outcomes]


@pytest.mark.parametrize("in_flight", [1, 7, 16, 64])
async def test_outcomes_come_in_the_order_of_the_rows_and_never_too_many_at_once(in_flight: int):
    ask = Echo()
    assert told(await scored(100, ask, in_flight=in_flight)) == list(range(100))
    assert ask.most_in_flight <= in_flight
    assert ask.most_in_flight > in_flight // 2


async def test_rows_are_read_as_they_are_needed():
    read = []

    def watched() -> Iterator[Row]:
        for row in rows(1000):
            read.append(row)
            yield row

    async with aclosing(score(watched(), Echo(), in_flight=32)) as outcomes:
        async for _ in outcomes:
            break
    assert len(read) <= 3 * 32


async def test_a_bad_row_says_so_in_its_place():
    assert told(await scored(20, Echo(), bad=5)) == [*range(5), "no number", *range(6, 20)]


async def test_a_row_that_the_model_fails_on_takes_no_other_along():
    ask = Echo()
    ask.fails_at = 9
    assert told(await scored(20, ask)) == [*range(9), "the model failed on a tick", *range(10, 20)]


async def test_a_full_queue_is_waited_for():
    ask = Echo(*[QueueFull("64 thoughts wait", retry_after_seconds=0.001)] * 3)
    assert told(await scored(20, ask)) == list(range(20))


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(Unavailable("the server is shutting down"), id="the server goes"),
        pytest.param(InvalidRequest("stop.max_ticks: got 99, expected 1 to 20"), id="nobody may ask like this"),
    ],
)
async def test_what_no_row_can_overcome_ends_the_run(failure: ThinkError):
    ask = Echo(failure)
    with pytest.raises(type(failure), match=str(failure)):
        await scored(1000, ask)
    assert ask.in_flight == 0, "what was under way is cancelled"


# ---- a real model


@pytest.fixture(scope="module")
def digits() -> Array:
    return np.random.default_rng(4).random((40, 1, 28, 28), np.float32)


async def test_a_model_in_this_process_answers_as_a_server_does(model_store: Path, digits: Array):
    config = ServerConfig(address="127.0.0.1:0", http_address="127.0.0.1:0", store=model_store, models=("mnist",))
    server = Server(config)
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{server.port}") as client, client.session() as session:
            theirs = await session.answer("mnist", {"image": digits}, threshold=0.7, max_ticks=9, top_k=2)
    finally:
        await server.drain()
    async with LocalThinker(find_bundle(model_store, "mnist")) as thinker:
        ours = await thinker.answer({"image": digits}, threshold=0.7, max_ticks=9, top_k=2)
        with pytest.raises(InvalidRequest, match="max_ticks: got 999, expected 1 to"):
            await thinker.answer({"image": digits}, max_ticks=999)
    assert [described(answer) for answer in ours.answers] == [described(answer) for answer in theirs.answers]
    assert ours.summary.ticks_used == theirs.summary.ticks_used


def described(answer: Answer) -> tuple[object, ...]:
    prediction = None if answer.prediction is None else answer.prediction.tobytes()
    return answer.top, answer.certainty, answer.ticks_used, answer.answer_tick, answer.stop_reason, prediction


def test_batches_of_a_table_keep_their_columns_and_their_types(model_store: Path, digits: Array):
    scorer = BatchScorer(str(model_store), "mnist", column="pixels", logits=True, abstain_below=0.5)
    try:
        flat = np.empty(3, object)
        flat[:] = [digits[0].reshape(-1), digits[1, 0], digits[2, 0, :5]]  # made flat, without its channel, cut off
        first = scorer({"pixels": flat, "id": np.arange(3)})
        second = scorer({"pixels": digits[:2], "id": np.arange(2)})
    finally:
        scorer.close()
    assert first["id"].tolist() == [0, 1, 2]
    assert first["error"][:2].tolist() == [None, None]
    assert "row 2, shape: got [5, 28], expected [1, 28, 28]" in first["error"][2]
    assert (first["prediction"][2], first["ticks_used"][2], first["abstained"][2]) == (None, 0, False)
    assert np.isnan(first["certainty"][2])
    for name in ("prediction", "certainty", "ticks_used", "stop_reason", "abstained"):
        assert first[name].dtype == second[name].dtype
        assert first[name][:2].tolist() == second[name].tolist()
    assert np.shape(second["logits"].tolist()) == (2, 10)


@pytest.mark.parametrize(
    ("model", "version", "error", "said"),
    [
        pytest.param("letters", 0, BundleRefused, "model 'letters': not in store", id="no such model"),
        pytest.param("mnist", 7, BundleRefused, "no version 7 of model 'mnist'", id="no such version"),
        pytest.param("kjv", 0, UnfitInput, "kjv is a model of text: only models that", id="a model of chains"),
    ],
)
def test_what_cannot_score_is_named(model_store: Path, model: str, version: int, error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        BatchScorer(str(model_store), model, column="x", version=version)
