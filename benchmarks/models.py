"""The two models that are measured, and what each is asked."""

import json
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.graphs import BoundGraphs, Runtime
from benchmarks.lockstep import StopWithLast
from benchmarks.workload import Workload, default_workload, random_inputs
from ctm.config import CTMConfig
from ctm.model import CTM
from ctm.servable import servable
from ctm.tasks import TaskConfig, load_task
from export.build import Publication, build_bundle
from export.source import Source
from serving.bundle import Bundle, load_bundle
from serving.store import scan

RECORDED = Path(__file__).with_name("ticks_used.json")
SYNTHETIC = CTMConfig(
    ticks=50,
    width=512,
    memory=25,
    attention_width=128,
    heads=8,
    out_neurons=256,
    action_neurons=256,
    out_dims=10,
    nlm_hidden=32,
    in_channels=64,
    input_shape=(64, 7, 7),
)
_SEED = 7
_SYNTHETIC_ROWS = 512
_BATCH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A bundle, what it is asked, and how its thoughts then end."""

    bundle: Bundle
    workload: Workload
    mean_ticks: float
    accuracy: float | None
    """Over the whole workload, by the stop rule; None without labels."""

    @property
    def store(self) -> Path:
        return self.bundle.path.parent.parent


def shipped(store: Path, data_dir: Path | None) -> Subject:
    """The newest `mnist` of a store, asked for the digits of MNIST's test set.

    Args:
        data_dir: a folder with MNIST's files; None fetches them.

    Raises:
        ValueError: the store holds no sound bundle of that name.
    """
    bundle = newest(store, "mnist")
    images, labels = mnist_test(data_dir)
    name = bundle.program.inputs[0].name
    return _subject(bundle, default_workload(bundle.manifest, {name: images}, labels))


def newest(store: Path, name: str) -> Bundle:
    """The newest sound bundle of a model.

    Raises:
        ValueError: there is none; says why.
    """
    bundles, refused = scan(store, names=[name])
    if not bundles:
        raise ValueError("; ".join(map(str, refused)))
    return bundles[0]


def mnist_test(data_dir: Path | None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All 10,000 digits of the test set, [N, 1, 28, 28] in [0, 1], and what they are, [N]."""
    rows = load_task(TaskConfig(name="mnist"), data_dir).test
    batch = rows.take(torch.arange(len(rows)))
    return batch.inputs.numpy(), batch.targets.numpy()


def synthetic(store: Path, config: CTMConfig = SYNTHETIC, rows: int = _SYNTHETIC_ROWS) -> Subject:
    """A fresh model with random weights, exported into `store`; its rows stop at recorded ticks.

    Random weights cost what trained ones cost, but are never certain: budgets take the place of certainty.
    """
    torch.manual_seed(_SEED)
    model = CTM(config, seed=_SEED).eval()
    source = Source(model=model, servable=servable(model, "features"))
    publication = Publication(store=store, name="synthetic", tick_cap=config.ticks)
    examples = torch.randn(_BATCH, *config.input_shape, generator=torch.Generator().manual_seed(_SEED))
    bundle = load_bundle(build_bundle(source, publication, [examples]))
    workload = Workload(
        model=bundle.name,
        inputs=random_inputs(bundle.program.inputs, rows, _SEED),
        max_ticks=recorded_ticks(config.ticks, rows, _SEED),
        threshold=inf,
    )
    return _subject(bundle, workload)


def recorded_ticks(ticks: int, rows: int, seed: int, path: Path = RECORDED) -> NDArray[np.int32]:
    """Ticks used, [rows], drawn from a recorded distribution and stretched to a budget of `ticks`."""
    recorded = json.loads(path.read_text())
    counts = np.array(recorded["thoughts_by_ticks_used"], np.float64)
    used = np.random.default_rng(seed).choice(len(counts), rows, p=counts / counts.sum()) + 1
    return np.ceil(used * ticks / len(counts)).astype(np.int32)


def _subject(bundle: Bundle, workload: Workload) -> Subject:
    ticks_used, correct = think_through(bundle, workload)
    return Subject(
        bundle=bundle,
        workload=workload,
        mean_ticks=float(ticks_used.mean()),
        accuracy=None if workload.labels is None else float(correct.mean()),
    )


def think_through(bundle: Bundle, workload: Workload) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Every row once: the ticks that it uses, [N], and whether its answer is right, [N] (false without labels)."""
    arm = StopWithLast(workload, BoundGraphs(bundle, _BATCH, Runtime(threads=1)))
    count = len(workload)
    ticks_used, right = np.empty(count, np.int64), np.zeros(count, bool)
    for begin in range(0, count, _BATCH):
        rows = np.minimum(np.arange(begin, begin + _BATCH), count - 1)  # the last batch repeats the last row
        batch = arm.think(rows)
        ticks_used[rows] = batch.ticks_used
        if workload.labels is not None:
            right[rows] = batch.predictions.argmax(-1) == workload.labels[rows]
    return ticks_used, right
