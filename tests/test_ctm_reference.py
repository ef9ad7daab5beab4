"""Models of others load strictly or not at all, and ours go out in their form."""

import argparse
import json
import pickle
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ctm.config import CTMConfig
from ctm.hub import HubError
from ctm.model import CTM
from ctm.reference import ReferenceFormatError, from_reference, load_reference, save_reference, to_reference

SMALL = {"ticks": 4, "width": 20, "memory": 3, "attention_width": 8, "heads": 2, "out_neurons": 7, "action_neurons": 5,
         "out_dims": 10, "nlm_hidden": 2, "in_channels": 3}  # fmt: skip


def build(**settings) -> CTM:
    torch.manual_seed(0)
    return CTM(CTMConfig(**{**SMALL, **settings}), seed=0).eval()


def arguments_of(settings: dict, **changes) -> argparse.Namespace:
    """What a train script would have kept beside the weights: its own names, and much about training."""
    values = {**settings, "deep_memory": settings["deep_nlms"], "do_normalisation": settings["do_layernorm_nlm"]}
    for name in ("deep_nlms", "do_layernorm_nlm", "prediction_reshaper"):
        del values[name]
    values |= {"lr": 1e-4, "batch_size": 64, "log_dir": "logs", "device": [-1], **changes}
    return argparse.Namespace(**{name: value for name, value in values.items() if value is not ...})


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="pairs"),
        pytest.param({"neuron_selection": "first-last", "prediction_shape": (5, 2)}, id="first-last"),
        pytest.param({"neuron_selection": "random", "synapse_depth": 3}, id="random"),
        pytest.param({"self_pairs": 3, "nlm_deep": False, "nlm_layernorm": True}, id="self pairs"),
        pytest.param({"backbone": "parity", "positional": "custom-rotational-1d", "in_channels": 1}, id="parity"),
        pytest.param({"backbone": "resnet18-2", "positional": "learnable-fourier"}, id="resnet18"),
        pytest.param({"backbone": "resnet50-1", "positional": "multi-learnable-fourier"}, id="resnet50"),
        pytest.param({"energy_hidden": 6, "dropout": 0.1, "nlm_dropout": 0.2}, id="energy head"),
        pytest.param({"synapse_depth": 3, "hyper_layers": "bottleneck", "hyper_rank": 2}, id="hyper bottleneck"),
        pytest.param(
            {"synapse_depth": 3, "hyper_layers": (1,), "hyper_nlm_rank": 3, "nlm_layernorm": True, "hyper_gate": True},
            id="a hyper level, hyper neurons, gated",
        ),
        pytest.param({"hyper_nlm_rank": 1, "nlm_deep": False}, id="hyper neurons, shallow"),
        pytest.param(
            {"backbone": "digit", "positional": "custom-rotational", "input_shape": (3, 8, 8), "input_mean": (0.4,),
             "input_std": (0.2,)}, id="our own backbone and normalisation",
        ),
    ],
)  # fmt: skip
def test_a_model_survives_the_way_out_and_back(tmp_path, settings):
    model = build(**settings)
    save_reference(model, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_reference(tmp_path / "model")
    assert loaded.config == model.config
    assert not loaded.training
    ours = model.state_dict()
    assert loaded.state_dict().keys() == ours.keys()
    assert [name for name, value in loaded.state_dict().items() if not torch.equal(value, ours[name])] == []


@pytest.mark.parametrize("depth", [1, 3])
def test_plain_weights_load_into_the_hyper_fork_without_hyper_layers_and_back(depth):
    model = build(synapse_depth=depth)
    settings, weights = to_reference(model, hyper=True)
    assert settings["hyper_layers"] == "none"
    assert settings["use_hyper_nlm"] is False
    assert ("synapses.up_projections.1.linear.weight" in weights) == (depth > 1)
    plain_settings, plain_weights = to_reference(model)
    for some_settings, some_weights in ((settings, weights), (settings, plain_weights), (plain_settings, weights)):
        loaded = from_reference(some_settings, some_weights)
        assert loaded.config == model.config
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_is_written_of_a_hyper_model_has_the_names_of_the_fork():
    settings, weights = to_reference(build(synapse_depth=3, hyper_layers=(1,), hyper_rank=4, hyper_nlm_rank=2))
    assert [settings[name] for name in ("hyper_layers", "hyper_rank", "use_hyper_nlm", "hyper_nlm_rank")] == [
        [1], 4, True, 2,
    ]  # fmt: skip
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert shapes["synapses.down_projections.0.linear.weight"] == (18, 20)
    assert shapes["synapses.down_projections.1.linear.base_layer.weight"] == (16, 18)
    assert shapes["synapses.down_projections.1.linear.head_u.weight"] == (16 * 4, 256)
    assert shapes["synapses.up_projections.1.linear.head_v.bias"] == (16 * 4,)
    assert shapes["trace_processor.layers.0.w1"] == (3, 4, 20)
    assert shapes["trace_processor.layers.2.w1_base"] == (2, 2, 20)
    assert shapes["trace_processor.layers.2.context_net.0.weight"] == (256, 20)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param({"use_hyper": True}, ("bottleneck", 8, None), id="the synapse model alone"),
        pytest.param({"use_hyper": True, "use_hyper_nlm": True}, ("bottleneck", 8, 4), id="neurons too"),
        pytest.param({"use_hyper": False, "use_hyper_nlm": True}, ("none", 8, None), id="options of no use"),
    ],
)
def test_the_scripts_of_the_hyper_fork_say_whether_their_options_count(tmp_path, arguments, expected):
    layers, rank, nlm_rank = expected
    model = build(synapse_depth=3, backbone="resnet18-1", hyper_layers=layers, hyper_rank=rank, hyper_nlm_rank=nlm_rank)
    settings, weights = to_reference(model)
    script = {"hyper_layers": "bottleneck", "hyper_rank": 8, "use_hyper_nlm": False, "hyper_nlm_rank": 4, **arguments}
    torch.save({"model_state_dict": weights, "args": arguments_of(settings, **script)}, tmp_path / "hyper.pt")
    assert load_reference(tmp_path / "hyper.pt").config == model.config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"hyper_rank": 8}, "bottleneck", id="the fork's default"),
        pytest.param({"hyper_layers": {1}}, (1,), id="a set of levels"),
        pytest.param({"hyper_layers": [1]}, (1,), id="a list of levels"),
    ],
)
def test_hyper_layers_are_read_as_the_fork_would(settings, expected):
    theirs, weights = to_reference(build(synapse_depth=3, hyper_layers="bottleneck"))
    del theirs["hyper_layers"]
    assert from_reference({**theirs, **settings}, weights).config.hyper_layers == expected


def test_a_synapse_model_without_levels_has_no_hyper_layers_in_the_fork():
    model = build()
    settings, weights = to_reference(model)
    assert from_reference({**settings, "hyper_layers": "all", "hyper_rank": 4}, weights).config == model.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"hyper_rank": 4}, r"are down 1 of rank 2, up .*configuration's are down 1 of rank 4", id="rank"),
        pytest.param({"hyper_layers": "up"}, r"are down 1 .*, up 1 .*configuration's are up 0 .*, up 1", id="layers"),
        pytest.param({"hyper_layers": "none"}, r"are down 1 .*configuration's are none", id="none"),
        pytest.param({"use_hyper_nlm": True}, r"configuration's are down 1 .*, neurons of rank 4, up 1", id="neurons"),
        pytest.param({"hyper_layers": "middle"}, "hyper_layers must be one of .* got 'middle'", id="no such layers"),
        pytest.param({"hyper_layers": [2]}, r"levels from 0 to .* 1, got \[2\]", id="no such level"),
        pytest.param({"hyper_rank": "8"}, "hyper_rank must be a whole number .* got '8'", id="text for a rank"),
        pytest.param({"use_hyper_nlm": 1}, "use_hyper_nlm must be true or false, got 1", id="a count for a truth"),
        pytest.param({"hyper_rank": 10**30}, "of which no model can be made", id="absurd rank"),
    ],
)
def test_hyper_settings_that_are_not_the_weights_are_named(change, message):
    settings, weights = to_reference(build(synapse_depth=3, hyper_layers="bottleneck", hyper_rank=2))
    with pytest.raises(ReferenceFormatError, match=message):
        from_reference({**settings, **change}, weights)


def test_what_is_written_has_the_names_of_the_reference(tmp_path):
    save_reference(build(synapse_depth=2, prediction_shape=(5, 2), backbone="resnet18-1"), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["iterations"] == 4
    assert settings["prediction_reshaper"] == [5, 2]
    weights = {name: tuple(value.shape) for name, value in load_file(tmp_path / "model.safetensors").items()}
    assert weights["start_activated_state"] == (20,)
    assert weights["trace_processor.0.0.w1"] == (3, 4, 20)
    assert weights["trace_processor.0.2.b1"] == (1, 20, 2)
    assert weights["trace_processor.0.2.T"] == (1,)
    assert weights["attention.in_proj_weight"] == (24, 8)
    assert weights["synapses.first_projection.0.weight"] == (20, 28)
    assert weights["backbone.layer1.1.conv2.weight"] == (64, 64, 3, 3)
    assert weights["initial_rgb.weight"] == (3, 3, 1, 1)


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict"])
def test_the_authors_files_load_in_both_layouts(tmp_path, key):
    model = build(backbone="resnet18-1")
    settings, weights = to_reference(model)
    torch.save({key: weights, "args": arguments_of(settings), "iteration": 100}, tmp_path / "ctm.pt")
    loaded = load_reference(str(tmp_path / "ctm.pt"))
    image = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(image).predictions, model(image).predictions)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param({"maze_route_length": 2}, {"prediction_shape": (2, 5)}, id="a maze by its route"),
        pytest.param({"dataset": "mazes-large"}, {"prediction_shape": (2, 5)}, id="a maze by its data"),
        pytest.param({"parity_sequence_length": 5}, {"prediction_shape": (5, 2)}, id="parity"),
        pytest.param({"dataset": "imagenet"}, {"prediction_shape": ()}, id="classes"),
        pytest.param({"neuron_select_type": ...}, {"neuron_selection": "first-last"}, id="selection not said"),
        pytest.param({"n_random_pairing_self": ...}, {"self_pairs": 0}, id="self pairs not said"),
        pytest.param(
            {"backbone_type": ..., "resnet_type": "resnet18", "resnet_feature_scales": [1, 2]},
            {"backbone": "resnet18-2"}, id="backbone in two parts",
        ),
    ],
)  # fmt: skip
def test_old_arguments_are_understood(tmp_path, arguments, expected):
    model = build(backbone="resnet18-2", neuron_selection="first-last")
    settings, weights = to_reference(model)
    torch.save({"state_dict": weights, "args": arguments_of(settings, **arguments)}, tmp_path / "ctm.pt")
    config = load_reference(tmp_path / "ctm.pt").config
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("selection", "said", "self_pairs"),
    [
        pytest.param("random", 256, 0, id="random, the scripts' default"),
        pytest.param("first-last", 256, 0, id="first-last, the scripts' default"),
        pytest.param("random-pairing", 3, 3, id="drawn pairs"),
    ],
)
def test_self_pairs_count_for_drawn_pairs_alone(tmp_path, selection, said, self_pairs):
    model = build(neuron_selection=selection, backbone="parity", positional="custom-rotational-1d", in_channels=1,
                  prediction_shape=(5, 2))  # fmt: skip
    settings, weights = to_reference(model)
    arguments = arguments_of(settings, n_random_pairing_self=said, parity_sequence_length=5)
    torch.save({"model_state_dict": weights, "args": arguments}, tmp_path / "parity.pt")
    loaded = load_reference(tmp_path / "parity.pt")
    assert loaded.config.self_pairs == self_pairs
    signs = torch.tensor([[1.0, -1, -1, 1, -1]])
    with torch.no_grad():
        assert torch.equal(loaded(signs).predictions, model(signs).predictions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"out_dims": "10", "maze_route_length": 2}, "out_dims must be .* got '10'", id="text for a count"),
        pytest.param(
            {"backbone_type": ..., "resnet_type": "resnet18", "resnet_feature_scales": 2},
            "resnet_feature_scales must be a list of stages, got 2", id="a number for scales",
        ),
    ],
)  # fmt: skip
def test_arguments_that_make_no_model_are_named(tmp_path, arguments, message):
    settings, weights = to_reference(build(backbone="resnet18-1"))
    torch.save({"state_dict": weights, "args": arguments_of(settings, **arguments)}, tmp_path / "ctm.pt")
    with pytest.raises(ReferenceFormatError, match=message):
        load_reference(tmp_path / "ctm.pt")


class Intruder:
    """Unpickling one would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        pytest.param(lambda path: {"extra": Intruder(path)}, "argparse.Namespace alone", id="code"),
        pytest.param(
            lambda path: {"extra": path}, r"ctm\.pt holds pathlib\.\S*, .*argparse\.Namespace alone", id="another class"
        ),
        pytest.param(
            lambda _: {"numpy_rng_state": np.random.RandomState(0).get_state()},
            r"holds numpy\._?core\.multiarray\._reconstruct, .* alone: .*save it anew with torch\.save\(\{'state_dict'",
            id="numpy's random state",
        ),
        pytest.param(
            lambda _: {"accuracy": np.float64(0.5)},
            r"holds numpy\._?core\.multiarray\.scalar, .*save it anew",
            id="numpy's number",
        ),
        pytest.param(lambda _: {"state_dict": {0: torch.ones(1)}}, r"names are no text: \[0\]", id="numbers for names"),
        pytest.param(lambda _: {"args": {"iterations": 4}}, "has no `args`", id="arguments as a dictionary"),
        pytest.param(lambda _: {"state_dict": {"T": 1}}, r"no tensors: \['T'\]", id="numbers for weights"),
        pytest.param(lambda _: {"state_dict": None}, "neither model_state_dict nor state_dict", id="no weights"),
    ],
)
def test_a_file_that_holds_anything_else_is_refused(tmp_path, extra, message):
    settings, weights = to_reference(build())
    checkpoint = {"state_dict": weights, "args": arguments_of(settings), **extra(tmp_path / "created")}
    torch.save(checkpoint, tmp_path / "ctm.pt")
    with pytest.raises(ReferenceFormatError, match=message):
        load_reference(tmp_path / "ctm.pt")
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", pickle.dumps({"a": 1}, 2)], ids=["empty", "text", "pickle"]
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "ctm.pt").write_bytes(content)
    with pytest.raises(ReferenceFormatError, match=r"ctm\.pt"):
        load_reference(tmp_path / "ctm.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"q_proj.weight": None}, r"missing q_proj\.weight \[8, 5\]", id="missing"),
        pytest.param({"q_prj.weight": torch.zeros(1)}, r"unknown q_prj\.weight", id="unknown"),
        pytest.param(
            {"output_projector.0.weight": torch.zeros(10, 8)},
            r"output_projector\.0\.weight is \[10, 8\], expected \[10, 7\]",
            id="another shape",
        ),
        pytest.param(
            {"start_trace": None, "decay_params_out": torch.zeros(3)},
            r"missing start_trace \[20, 3\]; decay_params_out is \[3\], expected \[7\]",
            id="two faults at once",
        ),
        pytest.param(
            {"out_neuron_indices_left": torch.tensor([0, 1, 2, 3, 4, 5, 20])}, "must hold neurons 0 to 19", id="neuron"
        ),
        pytest.param({"energy_proj.2.bias": torch.zeros(1)}, r"unknown energy_proj\.2\.bias", id="half an energy head"),
        pytest.param({"kv_proj.0.weight": None}, r"missing weight 'kv_proj\.0\.weight'", id="channels not to be read"),
        pytest.param(
            {"energy_proj.0.weight": torch.ones(())}, r"energy_proj\.0\.weight must have at least 2 dim", id="no axes"
        ),
        pytest.param(
            {"out_neuron_indices_left": torch.zeros(7, dtype=torch.complex64)},
            "must hold integers, got torch.complex64",
            id="complex neurons",
        ),
        pytest.param(
            {"out_neuron_indices_left": torch.zeros(7, dtype=torch.bool)},
            "must hold integers, got torch.bool",
            id="truth values for neurons",
        ),
        pytest.param(
            {"out_neuron_indices_left": torch.zeros(7)}, "must hold integers, got torch.float32", id="half neurons"
        ),
        pytest.param(
            {"out_neuron_indices_left": torch.full((7,), -1)}, "must hold neurons 0 to 19", id="negative neuron"
        ),
        pytest.param({"q_proj.weight": torch.zeros(8, 5).to_sparse()}, "dense .* got .* torch.sparse_coo", id="sparse"),
        pytest.param(
            {"q_proj.weight": torch.zeros(8, 5, device="meta")}, "dense .* on the meta device", id="no values"
        ),
        *(
            pytest.param(
                {"q_proj.bias": torch.zeros(8, dtype=kind)},
                f"q_proj.bias must hold floating-point numbers, got {kind}",
                id=f"{kind} for a weight",
            )
            for kind in (torch.int64, torch.int8, torch.bool, torch.complex64)
        ),
        pytest.param({"q_proj.bias": torch.full((8,), torch.nan)}, r"q_proj\.bias must hold finite .* NaN", id="NaN"),
        pytest.param(
            {"decay_params_out": torch.full((7,), torch.nan)}, "decay_params_out must hold finite", id="NaN decay"
        ),
        pytest.param({"decay_params_out": torch.full((7,), torch.inf)}, "finite .* infinity", id="infinite decay"),
        pytest.param(
            {"q_proj.bias": torch.full((8,), 1e300, dtype=torch.float64)},
            "finite .* infinity",
            id="infinite in float32",
        ),
        pytest.param(
            {"trace_processor.0.0.T": torch.zeros(1)}, r"0\.0\.T must be a temperature other than 0", id="no heat"
        ),
        pytest.param(
            {"q_proj.bias": torch.full((8,), torch.nan), "decay_params_out": torch.zeros(7, dtype=torch.int32)},
            r"q_proj\.bias must hold finite .* NaN; decay_params_out must hold floating",
            id="two that are of no use",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message):
    settings, weights = to_reference(build())
    changed = {name: value for name, value in {**weights, **change}.items() if value is not None}
    with pytest.raises(ReferenceFormatError, match=message):
        from_reference(settings, changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"itarations": 3}, r"unknown settings \['itarations'\]", id="unknown"),
        pytest.param({"d_model": ...}, r"missing settings \['d_model'\]", id="missing"),
        pytest.param({"heads": 0}, "heads must be a whole number of at least 1, got 0", id="no heads"),
        pytest.param({"backbone_type": "vgg"}, "backbone must be one of", id="backbone"),
        pytest.param({"d_model": 24}, r"start_activated_state is \[20\], expected \[24\]", id="another width"),
        pytest.param({"dropout": None}, "dropout must be a number .* got None", id="no dropout at all"),
        pytest.param({"dropout": "0.1"}, "dropout must be a number .* got '0.1'", id="text for a rate"),
        pytest.param({"dropout_nlm": "x"}, "nlm_dropout must be a number .* got 'x'", id="text for another rate"),
        pytest.param({"prediction_reshaper": [-1, 0]}, r"must be a list of sizes, .* got \[-1, 0\]", id="size 0"),
        pytest.param({"prediction_reshaper": -1}, "must be a list of sizes, .* got -1", id="a number for a shape"),
        pytest.param({"prediction_reshaper": [2.0, 5]}, "must be a list of sizes", id="a size that is not whole"),
        pytest.param({"prediction_reshaper": [-1, -1]}, "one size open", id="two open sizes"),
        pytest.param({"prediction_reshaper": [-1, 3]}, "must hold out_dims = 10", id="no size closes it"),
        pytest.param({"out_dims": "4", "prediction_reshaper": [2, -1]}, "out_dims must be .* got '4'", id="text"),
        pytest.param({"energy_head_enabled": "no"}, "must be true or false, got 'no'", id="text for a truth value"),
        pytest.param({"ctm_serving": None}, "ctm_serving must be an object .* got None", id="nothing of ours"),
        pytest.param({"ctm_serving": [1]}, r"ctm_serving must be an object .* got \[1\]", id="a list of ours"),
        pytest.param({"ctm_serving": {"heads": 4}}, "with keys of .* got {'heads': 4}", id="theirs among ours"),
        pytest.param(
            {"ctm_serving": {"input_mean": "0.5", "input_std": [1.0]}},
            "input_mean must be a list, got '0.5'",
            id="mean",
        ),
        pytest.param(
            {"ctm_serving": {"input_mean": ["0.5"], "input_std": [1.0]}},
            "input_mean must be numbers",
            id="text in a mean",
        ),
        pytest.param(
            {"ctm_serving": {"input_mean": [float("nan")], "input_std": [1.0]}},
            r"finite .* got \(nan,\)",
            id="NaN mean",
        ),
        pytest.param({"d_model": 10**15}, r"hold \d+ numbers, too few for width = 10{15}$", id="absurd width"),
        pytest.param({"n_synch_out": 10**15}, "too few for out_pairs = 10{15}$", id="absurd number of pairs"),
        pytest.param({"memory_length": 10**15}, "too few for memory = 10{15}$", id="absurd memory"),
        pytest.param({"synapse_depth": 10**15}, "too few for synapse_depth = 10{15}$", id="absurd depth"),
        pytest.param({"out_dims": 10**15}, "too few for out_dims = 10{15}$", id="absurd prediction"),
        pytest.param({"memory_hidden_dims": 10**18}, "of which no model can be made", id="absurd hidden width"),
        pytest.param({"memory_hidden_dims": 10**30}, "of which no model can be made", id="hidden width of no integer"),
        pytest.param({"memory_hidden_dims": 10**9}, r"w1 is .*, expected \[3, 2000000000, 20\]", id="no such memory"),
    ],
)
def test_settings_that_make_no_model_are_named(change, message):
    settings, weights = to_reference(build(backbone="shallow-wide" if "backbone_type" in change else "none"))
    changed = {name: value for name, value in {**settings, **change}.items() if value is not ...}
    with pytest.raises(ReferenceFormatError, match=message):
        from_reference(changed, weights)


def test_first_last_means_the_first_and_the_last_neurons():
    settings, weights = to_reference(build(neuron_selection="first-last"))
    weights["out_neuron_indices_left"] = weights["out_neuron_indices_left"].flip(0)
    with pytest.raises(ReferenceFormatError, match="out_neuron_indices_left holds other neurons than first-last"):
        from_reference(settings, weights)


def test_decays_come_in_clamped():
    settings, weights = to_reference(build())
    weights["decay_params_out"] = torch.linspace(-3, 20, 7)
    loaded = from_reference(settings, weights)
    torch.testing.assert_close(loaded.out_sync.decay.detach(), torch.linspace(-3, 20, 7).clamp(0, 15))


def test_an_energy_head_is_seen_in_the_weights():
    model = build(energy_hidden=6)
    settings, weights = to_reference(model)
    del settings["energy_head_enabled"], settings["energy_hidden_dim"]
    assert from_reference(settings, weights).config == model.config
    with pytest.raises(ReferenceFormatError, match=r"unknown energy_proj\.0\.weight"):
        from_reference({**settings, "energy_head_enabled": False}, weights)


def test_loading_draws_no_random_numbers():
    settings, weights = to_reference(build())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    from_reference(settings, weights)
    assert torch.equal(torch.rand(3), expected)


def test_a_repository_is_fetched_by_its_two_files(tmp_path, monkeypatch):
    model, asked = build(), []
    save_reference(model, tmp_path)

    def download(repository: str, **options) -> str:
        asked.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_reference("someone/ctm-small").config == model.config
    load_reference("someone/ctm-small@v2")
    both = ["config.json", "model.safetensors"]
    assert asked == [("someone/ctm-small", {"revision": revision, "allow_patterns": both}) for revision in (None, "v2")]


@pytest.mark.parametrize("source", ["nowhere", "./not/there.pt", "/not/there"])
def test_what_is_not_there_is_not_downloaded(source):
    with pytest.raises(FileNotFoundError, match="is no file, no folder and no repository"):
        load_reference(source)


@pytest.mark.parametrize("source", ["a b/c", "a--b/c", "a/.b", "a/b.git"])
def test_what_is_no_repository_id_is_refused(source):
    with pytest.raises(HubError, match=f"'{source}' is no repository id"):
        load_reference(source)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        pytest.param("config.json", None, FileNotFoundError, r"has no config\.json", id="no settings"),
        pytest.param("model.safetensors", None, FileNotFoundError, r"has no model\.safetensors", id="no weights"),
        pytest.param("config.json", b"{", ReferenceFormatError, "not readable", id="half a file of settings"),
        pytest.param("config.json", b"[]", ReferenceFormatError, "must hold an object, got list", id="a list"),
        pytest.param(
            "config.json", "{}".encode("utf-16"), ReferenceFormatError, "not readable", id="settings in UTF-16"
        ),
        pytest.param("config.json", b"[" * 100_000, ReferenceFormatError, "not readable", id="settings too deep"),
        pytest.param("config.json", b"9" * 5_000, ReferenceFormatError, "not readable", id="a number too long"),
        pytest.param("model.safetensors", b"torn", ReferenceFormatError, "not readable", id="half a file of weights"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(tmp_path, name, content, error, message):
    save_reference(build(), tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        load_reference(tmp_path)


def test_weights_in_half_precision_load_as_floats(tmp_path):
    save_reference(build(), tmp_path)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in load_file(tmp_path / "model.safetensors").items()}
    save_file(halves, tmp_path / "model.safetensors")
    assert {p.dtype for p in load_reference(tmp_path).parameters()} == {torch.float32}
