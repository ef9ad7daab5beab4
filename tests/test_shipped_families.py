"""Every model that ships: it agrees with the one that was trained, is small, and thinks over a real channel."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from served import served

from serving.bundle import load_bundle
from serving.client import AsyncClient
from serving.terminal.positions import best, read_maze

ROOT = Path(__file__).resolve().parent.parent
STORE, EXAMPLES = ROOT / "model_store", ROOT / "examples"
LARGEST = {"mnist": 2e6, "digits-diffusion": 10e6, "maze": 5e6, "parity": 5e6, "kjv": 10e6}
"""Bytes of a bundle."""
RECOGNISED = 28
"""Of 40 drawn digits, at least; a guess is right four times."""
FOLDERS = sorted(path.parent for path in STORE.glob("*/*/manifest.json"))


def test_all_families_ship_in_a_small_store() -> None:
    assert {folder.parent.name for folder in FOLDERS} == set(LARGEST)
    assert sum(path.stat().st_size for path in STORE.rglob("*") if path.is_file()) < 40e6


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_shipped_bundle_is_whole_and_agreed_with_the_model_as_trained(folder: Path) -> None:
    manifest = load_bundle(folder).manifest
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST[manifest.name]
    assert manifest.artefacts[0].backend == "onnx"
    for artefact in manifest.artefacts:
        agreement = artefact.agreement
        assert len(agreement.one_tick) == manifest.ticks
        assert max(agreement.one_tick) <= agreement.tolerance == 1e-4
        assert agreement.equal_stop_ticks >= 0.999
        assert agreement.rows >= 1000
    assert manifest.provenance.command.startswith("ctm-train configs/")
    assert manifest.provenance.export_command.startswith("ctm-export ")
    text = (folder / "README.md").read_text() + json.dumps(manifest.provenance.data)
    assert "../" not in text, "what ships names no place of the machine that made it"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[AsyncClient]:
    async with served(STORE) as server, AsyncClient(server.address) as connected:
        yield connected


@pytest.mark.asyncio(loop_scope="module")
async def test_mazes_are_solved_over_a_real_channel(client: AsyncClient) -> None:
    paths = sorted((EXAMPLES / "mazes").glob("*.png"))
    # Drawn 16 times as large as the model has them, to be seen.
    drawn = [np.asarray(Image.open(path), np.float32)[8::16, 8::16] for path in paths]
    images = np.stack([picture.transpose(2, 0, 1) / 255 for picture in drawn])
    result = await client.think("maze", {"maze": images}, top_k=1, every=0).result()
    mazes = [read_maze(path.name, image) for path, image in zip(paths, images, strict=True)]
    walks = [
        maze.walk([move.label for move in best(answer.top)]) for maze, answer in zip(mazes, result.answers, strict=True)
    ]
    solved = [walk.arrived for walk in walks]
    assert sum(solved) >= len(solved) / 2, [walk.outcome() for walk in walks]
    assert any(answer.ticks_used < 20 for answer in result.answers), "an easy maze ends early"


@pytest.mark.asyncio(loop_scope="module")
async def test_parities_are_told_over_a_real_channel(client: AsyncClient) -> None:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (64, 16)).astype(np.float32)
    expected = np.cumsum(signs < 0, axis=1) % 2
    result = await client.think("parity", {"sequence": signs}, every=0).result()
    found = np.stack([answer.prediction.argmax(-1) for answer in result.answers])
    assert (found == expected).mean() > 0.97, "seed 0"
    assert np.mean([answer.ticks_used for answer in result.answers]) < 24


@pytest.mark.asyncio(loop_scope="module")
async def test_a_text_is_written_over_a_real_channel_with_fewer_ticks_for_tokens_that_are_clear(
    client: AsyncClient,
) -> None:
    result = await client.generate(
        "kjv", "In the beginning God created the heaven and the", max_links=40, seed=1
    ).result()
    (links,) = result.links
    ticks = [answer.ticks_used for answer in links]
    assert min(ticks) < max(ticks) == 8
    assert all(answer.certainty <= 1 for answer in links)
    again = await client.generate(
        "kjv", "In the beginning God created the heaven and the", max_links=40, seed=1
    ).result()
    assert again.text == result.text
    assert len(result.text.split()) > 3


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_drawn_is_recognised_by_a_model_that_never_met_it(client: AsyncClient) -> None:
    asked = np.arange(40) % 10
    drawn = (await client.sample("digits-diffusion", asked.tolist(), seed=3).result()).images
    # The other model knows digits twice as large.
    pixels = [Image.fromarray(np.clip((image + 1) / 2, 0, 1).astype(np.float32)).resize((28, 28)) for image in drawn]
    images = np.stack([np.asarray(picture, np.float32)[None] for picture in pixels]).clip(0, 1)
    seen = await client.think("mnist", {"image": images}, top_k=1, every=0).result()
    right = sum(answer.top[0].index == digit for answer, digit in zip(seen.answers, asked, strict=True))
    assert right >= RECOGNISED, f"{right} of {len(asked)} are the digits that were asked for"
