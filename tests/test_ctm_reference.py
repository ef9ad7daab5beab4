"""Models of others load strictly or not at all, and ours go out in their form."""

import argparse
import json
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from ctm.config import CTMConfig
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
        pytest.param(lambda path: {"extra": path}, "argparse.Namespace alone", id="another class"),
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
        pytest.param({"d_model": None}, r"missing settings \['d_model'\]", id="missing"),
        pytest.param({"heads": 0}, "heads must be a whole number of at least 1, got 0", id="no heads"),
        pytest.param({"backbone_type": "vgg"}, "backbone must be one of", id="backbone"),
        pytest.param({"d_model": 24}, r"start_activated_state is \[20\], expected \[24\]", id="another width"),
    ],
)
def test_settings_that_make_no_model_are_named(change, message):
    settings, weights = to_reference(build(backbone="shallow-wide" if "backbone_type" in change else "none"))
    changed = {name: value for name, value in {**settings, **change}.items() if value is not None}
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
    assert asked == [("someone/ctm-small", {"allow_patterns": ["config.json", "model.safetensors"]})]


@pytest.mark.parametrize("source", ["nowhere", "./not/there.pt", "/not/there"])
def test_what_is_not_there_is_not_downloaded(source):
    with pytest.raises(FileNotFoundError, match="no file, no folder and no repository"):
        load_reference(source)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        pytest.param("config.json", None, FileNotFoundError, r"has no config\.json", id="no settings"),
        pytest.param("model.safetensors", None, FileNotFoundError, r"has no model\.safetensors", id="no weights"),
        pytest.param("config.json", b"{", ReferenceFormatError, "not readable", id="half a file of settings"),
        pytest.param("config.json", b"[]", ReferenceFormatError, "must hold an object, got list", id="a list"),
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
