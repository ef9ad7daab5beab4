"""Models whose answers have several positions, all the way: trained a little, exported, served, and thought with."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from served import served

from ctm.checkpoint import load_model
from ctm.model import CTM
from ctm.tasks import Task, load_task
from ctm.training.cli import main as train
from ctm.training.settings import from_table
from export.cli import main as export
from serving.client import Answer, AsyncClient, InvalidRequest, Tick

CONFIGS = Path(__file__).parents[1] / "configs"
TICKS = 5
SIZES = {"ticks": TICKS, "width": 16, "memory": 3, "attention-width": 16, "heads": 2, "out-neurons": 12}
OPTIONS = {
    "maze": "--task.maze.size 4 --task.maze.route 16 --task.maze.train-mazes 20 --task.maze.held-out-rows 40 "
    "--task.maze.test-rows 40 --model.input-shape 3 9 9 --model.out-dims 80 --model.prediction-shape 16 5",
    "parity": "--task.parity.length 6 --task.parity.held-out-rows 40 --task.parity.test-rows 40 "
    "--model.input-shape 6 --model.out-dims 12 --model.prediction-shape 6 2",
}


@dataclass
class Trained:
    """A model and where it is served from."""

    name: str
    model: CTM
    task: Task
    store: Path


@pytest.fixture(scope="module", params=OPTIONS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    name, folder = str(request.param), tmp_path_factory.mktemp("structured")
    options = f"--updates 20 --batch-size 16 --threads 1 --no-compile --output-dir {folder} {OPTIONS[name]}"
    options += " --optimiser.warmup-updates 2 --report.evaluate-every 20 --model.action-neurons 8"
    sizes = [word for key, value in SIZES.items() for word in (f"--model.{key}", str(value))]
    assert train([str(CONFIGS / f"{name}.toml"), "--name", name, *options.split(), *sizes]) == 0
    store = folder / "store"
    assert (
        export([str(folder / name), "--store", str(store), "--name", name, "--agreement-rows", "32", "--only-onnx"])
        == 0
    )
    model, config = load_model(folder / name)
    return Trained(name, model, load_task(from_table(config["run"], source="the checkpoint").task), store)


def test_training_says_how_many_answers_are_right_as_a_whole(trained: Trained) -> None:
    log = (trained.store.parent / trained.name / "log.jsonl").read_text().splitlines()
    (evaluation,) = (entry for entry in map(json.loads, log) if entry["event"] == "evaluation")
    assert 0 <= evaluation["whole"] <= evaluation["accuracy"]
    assert len(evaluation["whole_by_tick"]) == len(evaluation["unpadded_by_tick"]) == TICKS
    assert all(0 <= point["whole"] <= point["accuracy"] for point in evaluation["frontier"])


async def test_the_served_answer_is_the_trained_models_at_every_position(trained: Trained) -> None:
    inputs, _ = trained.task.test.take(torch.arange(7))
    with torch.inference_mode():
        thoughts = trained.model.eval()(inputs)
    async with served(trained.store) as server, AsyncClient(server.address) as client:
        await client.wait_ready(10, model=trained.name)
        manifest = await client.get_model(trained.name)
        given = {trained.task.input_name: inputs.numpy()}
        options: dict[str, Any] = {"threshold": 1.0, "predictions": True, "top_k": 1, "details": ["attention"]}
        async with client.think(trained.name, given, **options) as thinking:
            events = [event async for event in thinking]
        with pytest.raises(InvalidRequest, match=trained.task.input_name):
            await client.answer(trained.name, {trained.task.input_name: inputs.numpy()[..., :-1]})

    assert tuple(manifest.labels) == trained.task.labels
    assert len(manifest.quality.whole) == TICKS
    ticks = {(event.row, event.tick): event for event in events if isinstance(event, Tick)}
    assert len(ticks) == 7 * TICKS, "none is certain after so little training"
    for (row, number), tick in ticks.items():
        logits = thoughts.predictions[row, number - 1].unflatten(0, trained.task.prediction_shape)
        np.testing.assert_allclose(tick.prediction, logits, atol=1e-4)
        assert tick.certainty == pytest.approx(float(thoughts.certainties[row, number - 1]), abs=1e-4)
        assert [one.position for one in tick.top] == list(range(len(logits)))
        likeliest = logits.softmax(dim=1).amax(dim=1)
        np.testing.assert_allclose([one.score for one in tick.top], likeliest, atol=1e-4)
        np.testing.assert_allclose(tick.details["attention"].sum(axis=1), 1.0, atol=1e-5)
    for answer in (event for event in events if isinstance(event, Answer)):
        best = ticks[answer.row, answer.answer_tick]
        assert answer.certainty == best.certainty == max(ticks[answer.row, n].certainty for n in range(1, TICKS + 1))


async def ctm_think(address: str, *arguments: str) -> tuple[int, list[str], str]:
    """Exit status, lines printed, and what was said of errors."""
    command = [sys.executable, "-m", "serving.think", "--address", address, *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode().splitlines(), err.decode()


async def test_ctm_think_reads_and_shows_it(trained: Trained, tmp_path: Path) -> None:
    inputs, _ = trained.task.test.take(torch.arange(1))
    if trained.name == "maze":
        good, bad = str(tmp_path / "a.png"), str(tmp_path / "b.png")
        pixels = (inputs[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels.repeat(4, axis=0).repeat(4, axis=1)).save(good)
        Image.fromarray(pixels[:-1]).save(bad)
        refusal = "b.png: got 9 x 8 pixels, expected 9 x 9, or a whole number of times that"
    else:
        good, bad = "".join("+" if sign > 0 else "-" for sign in inputs[0]), "+-"
        refusal = "+-: got 2 signs, expected 6"
    with torch.inference_mode():
        logits = trained.model.eval()(inputs).predictions[0].unflatten(1, trained.task.prediction_shape)
    expected = [[trained.task.labels[index] for index in tick.argmax(dim=1)] for tick in logits]
    async with served(trained.store) as server:
        asked = ("--model", trained.name, "--threshold", "1")
        status, lines, _ = await ctm_think(server.address, *asked, "--json", "--attention", good)
        events = [json.loads(line) for line in lines]
        refused = await ctm_think(server.address, *asked, bad)
    assert status == 0
    assert [event["labels"] for event in events if event["event"] == "tick"] == expected
    assert all("attention" in event["details"] for event in events if event["event"] == "tick")
    assert refused == (1, [], f"ctm-think: {refusal}\n")
