"""The clients and ctm-think against a real ctm-serve process and a real exported model."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import served

from serving import client as api
from serving.client import Answer, AsyncClient, Client, Result, StopReason, Tick

ROWS = 5


@pytest.fixture
def inputs() -> dict[str, Any]:
    return {"features": np.random.default_rng(7).normal(size=(ROWS, 4, 6)).astype(np.float32)}


def plainly(result: Result) -> list[tuple[Any, ...]]:
    return [(one.row, one.label, one.ticks_used, one.stop_reason, one.prediction.tolist()) for one in result.answers]


async def test_every_way_of_asking_gives_the_same_answers(tiny_store: Path, inputs: dict[str, Any]):
    async with served(tiny_store) as server, AsyncClient(server.address) as client:
        await client.wait_ready(200, model="tiny")
        expected = plainly(await client.answer("tiny", inputs))

        async with client.think("tiny", inputs, top_k=1) as thinking:
            events = [event async for event in thinking]
        async with client.session() as session:
            results = await asyncio.gather(*(session.answer("tiny", inputs) for _ in range(20)))

        def blocking() -> Result:
            with Client(server.address) as other:
                return other.answer("tiny", inputs)

        assert plainly(await asyncio.to_thread(blocking)) == expected
        info = (await client.list_models())[0]
        manifest = await client.get_model("tiny")
    assert [plainly(result) for result in results] == [expected] * 20
    answers = sorted((event for event in events if isinstance(event, Answer)), key=lambda answer: answer.row)
    assert [(one.row, one.label, one.ticks_used) for one in answers] == [one[:3] for one in expected]
    for answer in answers:
        ticks = [event.tick for event in events if isinstance(event, Tick) and event.row == answer.row]
        assert ticks == list(range(1, answer.ticks_used + 1))
    assert len({one.ticks_used for one in answers}) > 1, "rows stop on ticks of their own"
    assert (info.name, info.ticks, manifest.inputs[0].name) == ("tiny", 8, "features")


async def test_what_the_server_refuses_is_typed(tiny_store: Path, inputs: dict[str, Any]):
    wrong = {"features": inputs["features"].astype(np.float64)}
    async with served(tiny_store) as server, AsyncClient(server.address) as client, client.session() as session:
        with pytest.raises(api.InvalidRequest, match="FP64"):
            await client.answer("tiny", wrong)
        with pytest.raises(api.UnknownModel, match="tiny"):
            await client.get_model("huge")
        with pytest.raises(api.InvalidRequest, match="FP64"):
            await session.answer("tiny", wrong)
        result = await session.answer("tiny", inputs, threshold=0.0, abstain_below=1.0)
    assert {answer.stop_reason for answer in result.answers} == {StopReason.CERTAIN}
    assert {answer.ticks_used for answer in result.answers} == {1}
    assert result.summary.abstain_mask == (True,) * ROWS


async def test_a_full_queue_is_tried_again(tiny_store: Path, inputs: dict[str, Any]):
    small = ("--engine.max-waiting", str(ROWS), "--engine.num-slots", "1", "--engine.max-rows", str(ROWS))
    async with served(tiny_store, *small) as server:
        async with AsyncClient(server.address) as client:
            full: list[api.QueueFull] = []
            async with asyncio.timeout(200):
                while not full:  # so many at once do not fit a queue of one request, but where this process is slow
                    crowd = [client.answer("tiny", inputs, threshold=1.0) for _ in range(60)]
                    results = await asyncio.gather(*crowd, return_exceptions=True)
                    full = [result for result in results if isinstance(result, api.QueueFull)]
            assert all(error.retry_after_seconds is not None for error in full)
        async with AsyncClient(server.address, retries=100) as client:
            crowd = [client.answer("tiny", inputs, threshold=1.0) for _ in range(6)]
            results = await asyncio.gather(*crowd)
    assert [len(result.answers) for result in results] == [ROWS] * 6


async def test_the_command_thinks_about_arrays(tiny_store: Path, inputs: dict[str, Any], tmp_path: Path):
    np.save(tmp_path / "rows.npy", inputs["features"])
    async with served(tiny_store) as server:
        arguments = ["--address", server.address, "--model", "tiny", "--json", str(tmp_path / "rows.npy")]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "serving.think", *arguments, stdout=PIPE, stderr=PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), 200)
    assert (process.returncode, err) == (0, b"")
    events = [json.loads(line) for line in out.splitlines()]
    labels = {event["image"]: event["label"] for event in events if event["event"] == "answer"}
    assert sorted(labels) == [f"rows.npy[{row}]" for row in range(ROWS)]
    assert all(label.startswith("class ") for label in labels.values())
    assert events[-1]["event"] == "summary"
