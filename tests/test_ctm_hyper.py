"""HyperCTM: which layers change, what a change costs, and that a thought of one is served as it was trained."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from seen_shapes import SeenShapes
from test_promises import ask, fingerprint, make_engine, run
from tiny_bundle import publish_tiny_bundle, tiny_inputs, tiny_model

from ctm.config import CTMConfig
from ctm.hyper import HyperLinear, describe_hyper, hyper_levels
from ctm.model import CTM
from ctm.training.cli import parse
from serving.backends.load import load_backend
from serving.bundle import load_bundle
from serving.engine import Engine
from serving.events import Tick
from serving.scheduler import Scheduler
from serving.settings import BackendConfig, EngineConfig

CONFIGS = Path(__file__).parent.parent / "configs"
HYPER = {"synapse_depth": 3, "hyper_layers": "bottleneck", "hyper_rank": 3, "hyper_nlm_rank": 2, "hyper_gate": True}
SMALL = {"ticks": 3, "width": 20, "memory": 4, "attention_width": 8, "heads": 2, "out_neurons": 6, "action_neurons": 5,
         "out_dims": 10}  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "down", "up"),
    [
        pytest.param("none", set(), set(), id="none"),
        pytest.param("bottleneck", {2}, {2}, id="bottleneck"),
        pytest.param("down", {0, 1, 2}, set(), id="down"),
        pytest.param("up", set(), {0, 1, 2}, id="up"),
        pytest.param("all", {0, 1, 2}, {0, 1, 2}, id="all"),
        pytest.param((0, 2), {0, 2}, {0, 2}, id="levels by number"),
    ],
)
def test_which_layers_change(layers, down, up):
    config = CTMConfig(**SMALL, synapse_depth=4, hyper_layers=layers)
    assert hyper_levels(config) == (down, up)
    model = CTM(config, seed=0)
    for blocks, expected in ((model.synapse.down, down), (model.synapse.up, up)):
        assert {level for level, block in enumerate(blocks) if isinstance(block.linear, HyperLinear)} == expected
    words = [f"down {level} of rank 8" for level in down] + [f"up {level} of rank 8" for level in up]
    assert describe_hyper(model.state_dict()) == (", ".join(sorted(words)) or "none")


def test_a_fresh_hyper_model_thinks_as_its_plain_layers():
    torch.manual_seed(0)
    hyper = CTM(CTMConfig(**SMALL, **HYPER), seed=0).eval()
    plain = CTM(CTMConfig(**SMALL, synapse_depth=3), seed=0).eval()
    weights = {name.replace(".base.", "."): value for name, value in hyper.state_dict().items()}
    plain.load_state_dict({name: value for name, value in weights.items() if ".change." not in name})
    features = torch.randn(4, 1, 6)
    with torch.no_grad():
        torch.testing.assert_close(hyper(features).predictions, plain(features).predictions, atol=1e-6, rtol=0)


def test_every_weight_of_a_change_learns_once_it_has_begun():
    torch.manual_seed(0)
    model = CTM(CTMConfig(**SMALL, **HYPER), seed=0)
    optimiser, features = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(4, 1, 6)
    for _ in range(2):
        optimiser.zero_grad()
        model(features).predictions.square().sum().backward()
        optimiser.step()
    changes = {name: weight.grad for name, weight in model.named_parameters() if ".change." in name}
    assert len(changes) == 3 * 10
    assert [name for name, gradient in changes.items() if gradient is None or not gradient.any()] == []


def test_the_changed_matrix_is_never_formed():
    layer = HyperLinear(53, 37, rank=2, gated=True)
    with torch.no_grad(), SeenShapes() as seen:
        layer(torch.randn(5, 53))
    assert {(5, 37, 2), (5, 53, 2)} <= seen.shapes
    assert not [shape for shape in seen.shapes if len(shape) > 2 and sorted(shape[-2:]) == [37, 53]]


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published HyperCTM of random weights: its graphs agreed with eager, or there would be none."""
    return publish_tiny_bundle(tmp_path_factory.mktemp("store"), **HYPER)


def test_a_hyper_thought_is_the_same_alone_or_in_company(bundle_folder):
    bundle = load_bundle(bundle_folder)
    rows = tiny_inputs(tiny_model(**HYPER), rows=9, seed=5).numpy()
    alone = [fingerprint(*run(make_engine(bundle, 1), [ask(bundle, row[None])]).values()) for row in rows]
    assert len({marks[-1] for marks in alone}) == len(rows), "rows differ"
    for num_slots, admissions, feed in ((2, 8, 99), (3, 1, 99), (5, 8, 4), (16, 5, 99)):
        order = np.random.default_rng(num_slots).permutation(len(rows))
        requests = [ask(bundle, rows[index][None]) for index in order]
        events = run(make_engine(bundle, num_slots, admissions), requests, feed=feed)
        for index, asked in zip(order, requests, strict=True):
            assert fingerprint(events[asked]) == alone[index], f"row {index} in {num_slots} slots"


@pytest.mark.parametrize("kind", ["onnx", "eager"])
def test_a_served_hyper_thought_has_the_models_numbers(bundle_folder, kind):
    bundle, model = load_bundle(bundle_folder), tiny_model(**HYPER)
    inputs = tiny_inputs(model, rows=4, seed=6)
    with torch.no_grad():
        expected = model(inputs).predictions
    backend = load_backend(bundle, BackendConfig(kind=kind), EngineConfig(num_slots=2))
    engine = Engine(backend, Scheduler(num_slots=2, max_waiting=8, admissions_per_plan=2), clock=time.monotonic)
    (events,) = run(engine, [ask(bundle, inputs.numpy())]).values()
    ticks = [event for event in events if isinstance(event, Tick)]
    assert len({event.row for event in ticks}) == 4
    for event in ticks:
        np.testing.assert_allclose(event.prediction, expected[event.row, event.tick - 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param([], "bottleneck", id="as in the file"),
        pytest.param(["--model.hyper-layers", "up"], "up", id="by name"),
        pytest.param(["--model.hyper-layers", "0", "1"], (0, 1), id="by number"),
    ],
)
def test_the_command_line_chooses_layers_by_name_and_by_number(options, expected):
    assert parse([str(CONFIGS / "mnist-hyper.toml"), *options]).run.model.hyper_layers == expected
