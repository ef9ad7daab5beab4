"""A CTM's configuration cannot be wrong."""

import dataclasses
import json
import subprocess
import sys

import pytest

from ctm.config import BACKBONES, POSITIONALS, CTMConfig

SMALL = {
    "ticks": 3,
    "width": 16,
    "memory": 4,
    "attention_width": 8,
    "heads": 2,
    "out_neurons": 6,
    "action_neurons": 5,
    "out_dims": 10,
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"ticks": 0}, "ticks must be a whole number of at least 1, got 0", id="no ticks"),
        pytest.param({"width": 2.5}, r"width must be .* got 2\.5", id="half a neuron"),
        pytest.param({"memory": True}, "memory must be .* got True", id="a truth value for a count"),
        pytest.param({"heads": 3}, "heads must divide attention_width 8, got 3", id="heads do not divide"),
        pytest.param({"synapse_depth": 0}, "synapse_depth", id="no synapse"),
        pytest.param({"nlm_deep": 1}, "nlm_deep must be true or false, got 1", id="a count for a truth value"),
        pytest.param({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1\.0", id="everything dropped"),
        pytest.param({"nlm_dropout": -0.1}, "nlm_dropout", id="negative dropout"),
        pytest.param({"dropout": None}, r"dropout must be a number in \[0, 1\), got None", id="no dropout at all"),
        pytest.param({"dropout": "0.1"}, "dropout must be a number .* got '0.1'", id="text for a rate"),
        pytest.param({"dropout": True}, "dropout must be a number .* got True", id="a truth value for a rate"),
        pytest.param({"nlm_dropout": float("nan")}, "nlm_dropout must be .* got nan", id="a rate that is no number"),
        pytest.param({"energy_hidden": 0}, "energy_hidden", id="empty energy head"),
        pytest.param(
            {"hyper_layers": "middle"}, "one of .*'bottleneck'.* or a list of .* got 'middle'", id="no layers"
        ),
        pytest.param({"hyper_layers": 2}, "one of .* or a list of levels, got 2", id="a number for layers"),
        pytest.param(
            {"hyper_layers": "all"}, "synapse_depth of at least 2, got 'all' with depth 1", id="hyper without U-Net"
        ),
        pytest.param({"hyper_layers": (), "synapse_depth": 3}, r"levels from 0 to .* = 1, got \(\)", id="no levels"),
        pytest.param({"hyper_layers": (0, 2), "synapse_depth": 3}, r"to .* 1, got \(0, 2\)", id="a level too deep"),
        pytest.param({"hyper_layers": (True,), "synapse_depth": 3}, r"got \(True,\)", id="a truth value for a level"),
        pytest.param({"hyper_layers": (1, 1), "synapse_depth": 3}, r"level once, got \(1, 1\)", id="a level twice"),
        pytest.param({"hyper_rank": 0}, "hyper_rank must be a whole number of at least 1, got 0", id="rank 0"),
        pytest.param({"hyper_nlm_rank": 1.5}, r"hyper_nlm_rank must be .* got 1\.5", id="half a rank"),
        pytest.param(
            {"hyper_gate": "no", "hyper_nlm_rank": 1}, "must be true or false, got 'no'", id="text for a gate"
        ),
        pytest.param({"hyper_gate": True}, "needs hyper_layers or hyper_nlm_rank", id="a gate of nothing"),
        pytest.param({"neuron_selection": "best"}, "neuron_selection must be one of .* got 'best'", id="selection"),
        pytest.param(
            {"neuron_selection": "first-last", "width": 10},
            r"6 \+ 5, got width 10",
            id="first and last neurons overlap",
        ),
        pytest.param({"self_pairs": 5}, "fewer than the 5 pairs", id="all pairs are self pairs"),
        pytest.param({"self_pairs": -1}, "self_pairs must be", id="negative self pairs"),
        pytest.param({"self_pairs": 1, "neuron_selection": "random"}, "for random-pairing", id="pairs are given"),
        pytest.param({"out_dims": 1}, "at least 2 classes", id="one class has no entropy"),
        pytest.param({"prediction_shape": (5, 3)}, "must hold out_dims = 10", id="shape of another size"),
        pytest.param({"prediction_shape": (-5, -2)}, "each size in prediction_shape", id="negative sizes"),
        pytest.param({"prediction_shape": (10, 1)}, "at least 2 classes", id="one class a position"),
        pytest.param({"backbone": "resnet19-1"}, "backbone must be one of", id="no such backbone"),
        pytest.param({"backbone": "digit", "positional": "sine"}, "positional must be one of", id="no such positional"),
        pytest.param(
            {"positional": "learnable-fourier"}, "for backbone none must be one of", id="positions of nothing"
        ),
        pytest.param({"backbone": "parity", "positional": "custom-rotational"}, "parity", id="a plane on a line"),
        pytest.param({"backbone": "digit", "positional": "custom-rotational-1d"}, "digit", id="a line on a plane"),
        pytest.param({"input_shape": (1, 0)}, "each size in input_shape", id="empty input"),
        pytest.param({"input_shape": None}, "input_shape must be a list, got None", id="None for a shape"),
        pytest.param({"prediction_shape": 10}, "prediction_shape must be a list, got 10", id="a number for a shape"),
        pytest.param({"input_mean": "0.5"}, "input_mean must be a list, got '0.5'", id="text for a list"),
        pytest.param(
            {"backbone": "digit", "input_shape": (3, 28, 28)},
            r"must be \(1, height, width\), got \(3, 28, 28\)",
            id="an image of other channels",
        ),
        pytest.param(
            {"backbone": "digit", "input_shape": (1, 28)},
            r"must be \(1, height, width\), got \(1, 28\)",
            id="a line for an image",
        ),
        pytest.param(
            {"input_shape": (3, 9)}, r"must be \(1, \.\.\.\), .* got \(3, 9\)", id="features of other channels"
        ),
        pytest.param({"input_shape": (1,)}, r"must be \(1, \.\.\.\), .* got \(1,\)", id="features without positions"),
        pytest.param(
            {"backbone": "parity", "input_shape": (1, 8, 8)},
            r"parity must be \(length,\), got \(1, 8, 8\)",
            id="an image for signs",
        ),
        pytest.param({"input_mean": (0.5,)}, "equally long", id="mean without deviation"),
        pytest.param(
            {"input_mean": (float("nan"),), "input_std": (1.0,)},
            r"input_mean must be finite .* got \(nan,\)",
            id="a mean that is no number",
        ),
        pytest.param({"input_mean": ("x",), "input_std": (1.0,)}, "input_mean must be numbers", id="text for a mean"),
        pytest.param(
            {"input_mean": (0.5,), "input_std": (float("inf"),)},
            r"input_std must be finite .* got \(inf,\)",
            id="infinite deviation",
        ),
        pytest.param(
            {"input_mean": (0.5,), "input_std": (1e39,)}, "finite in float32", id="infinite deviation in float32"
        ),
        pytest.param(
            {"input_mean": (0.5,), "input_std": (1e-60,)}, "input_std must be positive", id="no deviation in float32"
        ),
        pytest.param({"input_mean": (0.5, 0.5), "input_std": (1.0, 1.0)}, "1 or in_channels = 1", id="channels"),
        pytest.param({"input_mean": (0.5,), "input_std": (0.0,)}, "input_std must be positive", id="no deviation"),
        pytest.param({"backbone": "parity", "input_mean": (0.0,), "input_std": (1.0,)}, "signs", id="mean of signs"),
    ],
)
def test_what_cannot_be_is_refused_with_what_was_met(settings, message):
    with pytest.raises(ValueError, match=message):
        CTMConfig(**{**SMALL, **settings})


@pytest.mark.parametrize(
    ("selection", "out_pairs", "action_pairs"),
    [
        pytest.param("random-pairing", 6, 5, id="drawn pairs"),
        pytest.param("first-last", 21, 15, id="each with each, first-last"),
        pytest.param("random", 21, 15, id="each with each, random"),
    ],
)
def test_how_many_pairs_a_selection_makes(selection, out_pairs, action_pairs):
    config = CTMConfig(**SMALL, neuron_selection=selection)
    assert (config.out_pairs, config.action_pairs) == (out_pairs, action_pairs)


def test_a_configuration_survives_json():
    config = CTMConfig(
        **SMALL, prediction_shape=(2, 5), backbone="digit", input_shape=(1, 8, 8), input_mean=(0.1,), input_std=(0.3,)
    )
    written = json.loads(json.dumps(config.to_dict()))
    assert written == config.to_dict()
    assert CTMConfig.from_dict(written) == config


@pytest.mark.parametrize("layers", ["bottleneck", (0, 2)])
def test_hyper_layers_survive_json(layers):
    config = CTMConfig(**SMALL, synapse_depth=4, hyper_layers=layers, hyper_rank=3, hyper_nlm_rank=2, hyper_gate=True)
    assert CTMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.hyper


def test_a_configuration_from_before_hyper_layers_is_plain():
    written = {name: value for name, value in CTMConfig(**SMALL).to_dict().items() if not name.startswith("hyper")}
    assert CTMConfig.from_dict(written) == CTMConfig(**SMALL)
    assert not CTMConfig(**SMALL).hyper


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"widht": 16}, r"unknown CTM settings \['widht'\], allowed are .*'width'", id="unknown"),
        pytest.param({"ticks": None}, r"missing CTM settings \['ticks'\]", id="missing"),
    ],
)
def test_unknown_and_missing_settings_are_named(change, message):
    values = {name: value for name, value in {**SMALL, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        CTMConfig.from_dict(values)


def test_a_list_is_as_good_as_a_tuple():
    shapes = {"prediction_shape": [2, 5], "input_shape": [1, 9], "input_mean": [0.1], "input_std": [1]}
    config = CTMConfig(**SMALL, **shapes)
    assert {name: getattr(config, name) for name in shapes} == {name: tuple(value) for name, value in shapes.items()}
    assert hash(config) == hash(CTMConfig.from_dict(config.to_dict()))


def test_a_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CTMConfig(**SMALL).ticks = 5


def test_each_backbone_has_a_positional_embedding_that_fits():
    fitting = {(b, p) for b in BACKBONES for p in POSITIONALS if _fits(backbone=b, positional=p)}
    assert {backbone for backbone, _ in fitting} == set(BACKBONES)
    assert {positional for _, positional in fitting} == set(POSITIONALS)


def _fits(**settings: str) -> bool:
    try:
        CTMConfig(**SMALL, **settings)
    except ValueError:
        return False
    return True


def test_the_models_need_torch_alone():
    code = """
import sys
sys.modules.update(dict.fromkeys(["numpy", "safetensors", "huggingface_hub", "accelerate", "sklearn"]))
import torch
from ctm import CTM, CTMConfig
from ctm.losses import image_loss
config = CTMConfig(ticks=2, width=20, memory=2, attention_width=4, heads=1, out_neurons=3, action_neurons=3, out_dims=2,
                   synapse_depth=2)
thoughts = CTM(config)(torch.rand(2, 1, 5))
image_loss(thoughts.predictions, thoughts.certainties, torch.tensor([0, 1])).value.backward()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
