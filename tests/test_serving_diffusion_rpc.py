"""Samples over a real channel: what a caller and a client see of a chain of reverse steps."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from scripted import Paused
from scripted_diffusion import BUNDLE, CLASSES, HEIGHT, STEPS, TICKS, WIDTH, WILD, ScriptedDiffusion
from scripted_server import scripted_server

from protos import ctm_serving_pb2 as pb
from serving import client as api
from serving.client import Answer, AsyncClient, ChainEnd, Client, StopReason, Summary, Tick
from serving.client.message import sample_message
from serving.request import Request
from serving.tensors import array


class PausedDiffusion(Paused, ScriptedDiffusion):
    """Waits in the second of its links."""

    before = TICKS + 1


def serving(*, num_slots: int = 4, seconds_per_tick: float = 0.0, **settings: Any) -> Any:
    backend = ScriptedDiffusion(num_slots, seconds_per_tick=seconds_per_tick)
    return scripted_server(bundle=BUNDLE, backend=backend, num_slots=num_slots, **settings)


async def test_a_sample_comes_step_by_step_each_with_its_own_ticks():
    request = sample_message("dots", ["quick", "plain"], seed=5, every=None, steps=3, images_every=2)
    async with serving() as server:
        events = [event async for event in server.stub.Think(request)]
    ticks = [tick for event in events for tick in event.ticks.ticks]
    assert {(tick.row, tick.link) for tick in ticks} == {(row, link) for row in (0, 1) for link in range(3)}
    by_row = [
        [event.answer for event in events if event.HasField("answer") and event.answer.row == row] for row in (0, 1)
    ]
    for links in by_row:
        assert [answer.link for answer in links] == [0, 1, 2]
        named = [[tensor.name for tensor in answer.outputs] for answer in links]
        assert named == [["level"], ["level", "image", "estimate"], ["level", "image", "estimate"]]
        assert not any(answer.HasField("prediction") for answer in links), "nobody asked for them"
        assert links[-1].chain_end == pb.MAX_LINKS
    summary = events[-1].summary
    assert summary.seed == 5
    assert summary.ticks_used == sum(answer.ticks_used for links in by_row for answer in links)
    image, estimate = (array(tensor) for tensor in summary.outputs)
    assert image.shape == estimate.shape == (2, HEIGHT, WIDTH)
    np.testing.assert_array_equal(image[1], array(by_row[1][-1].outputs[1]))


async def test_the_client_draws_the_same_again_with_the_same_seed():
    async with serving(num_slots=2) as server, AsyncClient(server.address) as client, client.session() as session:
        free = await client.sample("dots", [1, 0, 1]).result()
        again = await client.sample("dots", [1, 0, 1], seed=free.summary.seed).result()
        both = [await session.sample("dots", CLASSES[1], seed=free.summary.seed), await session.sample("dots", 0)]
        alone, _ = [await one.result() for one in both]
    assert free.images.shape == (3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(free.images, again.images)
    np.testing.assert_array_equal(alone.images[0], free.images[0])
    assert not np.array_equal(free.images[0], free.images[2])
    assert [len(links) for links in free.links] == [STEPS] * 3


async def test_the_client_streams_what_each_step_took():
    async with serving() as server, AsyncClient(server.address) as client:
        got = [event async for event in client.sample("dots", 1, every=None, predictions=True, abstain_below=1.0)]
    ticks = [event for event in got if isinstance(event, Tick)]
    answers = [event for event in got if isinstance(event, Answer)]
    assert ticks[0].prediction.shape == answers[0].prediction.shape == (HEIGHT * WIDTH, 4)
    assert [int(answer.outputs["level"]) for answer in answers] == [6, 3, 0, -1]
    assert [answer.abstained for answer in answers] == [True] * STEPS
    assert {tick.tick for tick in ticks} == set(range(1, 1 + max(answer.ticks_used for answer in answers)))
    assert isinstance(got[-1], Summary)


async def test_the_ordinary_client_does_the_same():
    def run(address: str) -> None:
        with Client(address) as client:
            with client.sample("dots", "plain", steps=2, eta=0.0, stride=2, images_every=0) as sampling:
                *answers, summary = sampling
            assert ["image" in answer.outputs for answer in answers] == [False, True]
            assert summary.outputs["image"].shape == (1, HEIGHT, WIDTH)
            whole = client.answer("dots", {"label": np.array([2, 1])})
            assert set(whole.answers[0].outputs) == {"level", "image", "estimate"}

    async with serving() as server:
        await asyncio.to_thread(run, server.address)


async def test_a_row_that_diverges_leaves_the_others():
    async with serving() as server, AsyncClient(server.address) as client:
        result = await client.sample("dots", [0, WILD, 0]).result()
    assert [answer.stop_reason is StopReason.DIVERGED for answer in result.answers] == [False, True, False]
    assert result.answers[1].chain_end is ChainEnd.INTERRUPTED
    assert result.summary.abstain_mask == (False, True, False)
    assert np.isfinite(result.images).all()


async def test_a_deadline_ends_a_sample_with_what_there_is():
    backend = ScriptedDiffusion(num_slots=1)
    serving_one = scripted_server(bundle=BUNDLE, backend=backend, num_slots=1)
    async with serving_one as server, AsyncClient(server.address) as client:
        server.put_forward(600.0, after=10)
        result = await client.sample("dots", [0, 0], steps=10, timeout=600.0).result()
    assert all(len(links) < 10 for links in result.links)
    assert result.images.shape == (2, HEIGHT, WIDTH)


async def test_leaving_in_mid_chain_frees_the_slot(monkeypatch):
    backend = PausedDiffusion(num_slots=1)
    async with scripted_server(bundle=BUNDLE, backend=backend, num_slots=1) as server:
        cancel = server.runner.cancel

        def cancel_and_go_on(request: Request) -> None:
            cancel(request)
            backend.go_on.set()

        monkeypatch.setattr(server.runner, "cancel", cancel_and_go_on)
        call = server.stub.Think(sample_message("dots", 0, steps=10))
        assert (await call.read()).HasField("answer")
        call.cancel()
        async with asyncio.timeout(10):
            while "CANCELLED" not in server.ended():
                await asyncio.sleep(0.005)
        assert server.runner.engine.idle


async def test_what_is_refused_is_an_invalid_argument():
    async with serving(max_links=9) as server, AsyncClient(server.address) as client:
        for label, options, said in (
            (9, {}, "row 0: got 9, expected a class, 0 to 3"),
            ("nine", {}, "row 0: got 'nine', expected one of plain"),
            (1, {"steps": 0}, "steps: got 0"),
            (1, {"steps": 10}, "steps: got 10, expected at most 9"),
            (1, {"threshold": 2.0}, "certainty_threshold: got 2"),
        ):
            with pytest.raises(api.InvalidRequest, match=said) as raised:
                await client.sample("dots", label, **options).result()
            assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert (await client.sample("dots", 1, max_ticks=TICKS).result()).images.shape == (1, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("label", "options", "said"),
    [
        pytest.param([], {}, "at least one", id="no class"),
        pytest.param(7.5, {}, "expected numbers or names", id="half a class"),
        pytest.param([1, None], {}, "expected numbers or names", id="no number"),
        pytest.param(1, {"seed": 2**64}, "seed: got 18446744073709551616, expected 0 to 2", id="a seed beyond 64 bits"),
        pytest.param(1, {"seed": -1}, "seed: got -1, expected 0 to 2", id="a seed below 0"),
        pytest.param(1, {"timeout": 0}, "timeout: got 0", id="no time"),
    ],
)
def test_what_no_server_could_take(label, options, said):
    with pytest.raises(ValueError, match=said):
        sample_message("dots", label, **options)
