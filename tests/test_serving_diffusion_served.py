"""A published diffusion model behind the real backends: it draws what the sampler draws, alone or in company."""

import asyncio
import re
import time
from functools import cache
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from served import served
from tiny_diffusion import tiny_diffusion, write_diffusion_bundle

from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.reverse import clipped, reverse_step
from ctm.diffusion.sampling import Samples, sample
from serving import client as api
from serving.backends.base import Backend
from serving.backends.load import load_backend
from serving.backends.onnx_runtime import OnnxRuntimeBackend
from serving.bundle import Bundle, load_bundle
from serving.chance import Chance
from serving.client import AsyncClient
from serving.client.message import sample_message
from serving.diffusion.levels import planned_levels
from serving.engine import Engine, StepReport
from serving.events import Answer, Summary
from serving.mismatch import Mismatch
from serving.request import Request
from serving.scheduler import Scheduler
from serving.settings import BackendConfig, EngineConfig
from serving.wire import parse_request

LABELS = [0, 1, 2, 3]
SEED, STEPS, ETA = 11, 6, 0.6
KINDS = ["onnx", "torchscript", "eager"]


@cache
def model() -> EnhancedCTMDiffusion:
    return tiny_diffusion(refine=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one exported model, whose thoughts are also told what the step before took for the clean image."""
    folder = tmp_path_factory.mktemp("store")
    write_diffusion_bundle(folder, refine=True)
    return folder


@pytest.fixture(scope="module")
def bundle(store: Path) -> Bundle:
    return load_bundle(store / "tiny-diffusion" / "1")


@pytest.fixture(scope="module")
def backends(bundle: Bundle) -> Any:
    @cache
    def load(kind: str, num_slots: int = 4) -> Backend:
        config = BackendConfig(kind=kind, allow_torchscript=True, intra_op_threads=1)
        return load_backend(bundle, config, EngineConfig(num_slots=num_slots, encode_rows_per_step=4))

    return load


def asked(bundle: Bundle, labels: list[int] = LABELS, seed: int = SEED, **options: Any) -> Request:
    message = sample_message("tiny-diffusion", labels, seed=seed, **{"steps": STEPS, "eta": ETA, **options})
    return parse_request(message, bundle, max_rows=64, max_links=64, arrival=0.0, call_deadline=inf)


def draw(backend: Backend, *requests: Request) -> list[tuple[list[Answer], Summary]]:
    """Answers by row and link, and the summary, of each request; they come one after the other, while others run."""
    positions = backend.program.positions
    num_slots = backend.tick_buckets[-1]
    scheduler = Scheduler(num_slots=num_slots, max_waiting=64, admissions_per_plan=4, positions=positions)
    engine = Engine(backend, scheduler, clock=time.monotonic, chain_ahead=1000)
    events: dict[Request, list[Any]] = {request: [] for request in requests}
    left = list(requests)
    while left or not engine.idle:
        if left:
            engine.submit(left.pop(0))
        report = StepReport()
        engine.step(report)
        for request, event in report.events:
            events[request].append(event)
    return [(sorted(found[:-1], key=lambda one: (one.row, one.link)), found[-1]) for found in events.values()]


def noise(count: int = len(LABELS)) -> Any:
    """What the server's rows are given, step by step, as the sampler asks for it."""
    side = model().diffusion.side

    def of_step(step: int) -> torch.Tensor:
        rows = [Chance(SEED).normal(row, step, side * side).reshape(side, side) for row in range(count)]
        return torch.from_numpy(np.stack(rows))

    return of_step


def sampled(**settings: float) -> Samples:
    return sample(model(), torch.tensor(LABELS), noise(), steps=STEPS, eta=ETA, **settings)


def clear_of(certainties: torch.Tensor, share: float) -> float:
    """A threshold about there in the order of the certainties, in the widest gap: rounding decides nothing about it."""
    found = certainties.flatten().sort().values
    near = found[int(max(0, share - 0.15) * len(found)) : int((share + 0.15) * len(found))]
    widest = int(near.diff().argmax())
    return float(near[widest] + near[widest + 1]) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_draws_what_the_sampler_draws(bundle, backends, kind):
    certain, below = (clear_of(sampled().certainties, share) for share in (0.7, 0.3))
    wanted = sampled(certainty_threshold=certain, confidence_threshold=below)
    assert 0 < wanted.abstained.float().mean() < 1
    assert wanted.ticks_used.min() < wanted.ticks_used.max()
    ((answers, summary),) = draw(backends(kind), asked(bundle, threshold=certain, abstain_below=below))
    assert [answer.abstained for answer in answers] == wanted.abstained.T.flatten().tolist()
    assert [answer.ticks_used for answer in answers] == wanted.ticks_used.T.flatten().tolist()
    assert summary.abstentions == wanted.abstained.sum(0).tolist()
    estimates = np.stack([answer.outputs["estimate"] for answer in answers]).reshape(len(LABELS), STEPS, 6, 6)
    np.testing.assert_allclose(summary.outputs["image"], wanted.images, atol=1e-4)
    np.testing.assert_allclose(estimates.swapaxes(0, 1), wanted.estimates, atol=1e-4)


def test_who_always_abstains_is_drawn_by_the_denoiser_alone(bundle, backends):
    ((answers, summary),) = draw(backends("onnx"), asked(bundle, abstain_below=1.0))
    assert all(answer.abstained for answer in answers)
    label, eta, drawn = torch.tensor(LABELS), torch.full((len(LABELS),), ETA), noise()
    schedule, image = model().schedule, drawn(0)
    with torch.no_grad():
        for step, (level, following) in enumerate(pairwise(planned_levels(model().diffusion.levels, STEPS)), start=1):
            level_N, next_N = torch.full_like(label, level), torch.full_like(label, following)
            predicted = model().denoise(image, level_N, label, None)
            parts = clipped(schedule, schedule.take_apart(image, predicted, level_N, "noise"), level_N)
            image = reverse_step(schedule, parts, level_N, next_N, drawn(step), eta)
    np.testing.assert_allclose(summary.outputs["image"], image, atol=1e-4)
    guided = draw(backends("onnx"), asked(bundle, abstain_below=0.0))[0][1].outputs["image"]
    assert np.abs(guided - image.numpy()).max() > 0.01, "the thought has a say otherwise"


@pytest.mark.parametrize("num_slots", [1, 2, 3, 8])
def test_a_sample_is_the_same_alone_or_in_company(bundle, backends, num_slots):
    """Bit for bit, on ONNX Runtime's CPU provider."""
    ((alone, summary),) = draw(backends("onnx", 1), asked(bundle, [2], stride=2))
    crowd = [asked(bundle, labels, seed) for seed, labels in enumerate([LABELS, [1], [3, 3, 0]])]
    found = draw(backends("onnx", num_slots), crowd[0], asked(bundle, [2, 1], stride=2), *crowd[1:])[1]
    company = [answer for answer in found[0] if answer.row == 0]
    assert len(alone) == len(company) > 1
    for one, other in zip(alone, company, strict=True):
        assert (one.ticks_used, one.certainty, one.abstained) == (other.ticks_used, other.certainty, other.abstained)
        for name, values in one.outputs.items():
            np.testing.assert_array_equal(values, other.outputs[name])
    np.testing.assert_array_equal(summary.outputs["image"][0], found[1].outputs["image"][0])


def test_the_same_seed_draws_the_same_and_another_does_not(bundle, backends):
    one, again, other = (
        draw(backends("onnx"), asked(bundle, seed=seed))[0][1].outputs["image"] for seed in (SEED, SEED, 12)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_graph_that_is_not_the_finish_of_its_manifest_is_refused(bundle):
    graphs = {name: path.read_bytes() for name, path in bundle.graphs("onnx").items()}
    with pytest.raises(Mismatch, match=r"graph finish, arguments: got keys, expected of image, level"):
        OnnxRuntimeBackend(bundle.program, {**graphs, "finish": graphs["tick"]}, 2, 2)


def read(url: str) -> str:
    with urlopen(url) as response:
        return str(response.read().decode())


async def test_a_bundle_of_diffusion_is_served(store):
    async with served(store) as server, AsyncClient(server.address) as client:
        result = await client.sample("tiny-diffusion", ["two", "none"], seed=3, abstain_below=1.0).result()
        again = await client.sample("tiny-diffusion", [2, 0], seed=3, abstain_below=1.0, images_every=0).result()
        with pytest.raises(api.InvalidRequest, match=r"row 0: got 4, expected a class, 0 to 3 \(none, one, two, three"):
            await client.sample("tiny-diffusion", 4).result()
        page = await asyncio.to_thread(read, f"{server.http}/metrics")
    np.testing.assert_array_equal(result.images, again.images)
    assert result.images.shape == (2, 6, 6)
    assert [len(links) for links in result.links] == [6, 6], "the bundle's own steps"
    assert result.summary.abstentions == (6, 6)
    for name in ("ctm_reverse_steps_total", "ctm_reverse_step_abstentions_total"):
        counts = dict(re.findall(rf'{name}{{.*noise="([^"]+)".*}} (\d+)\.0', page))
        # Levels 19, 15, 11, 8, 4 and 0 of 20, twice two rows each.
        assert counts == {"0-20%": "4", "20-40%": "4", "40-60%": "8", "60-80%": "4", "80-100%": "4"}
    assert re.search(r'ctm_finish_seconds_count{model="tiny-diffusion",version="1"} [1-9]', page)
