"""The settings of the reference implementation, and ours."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ctm.config import RESNETS, CTMConfig

# Ours -> the reference's constructor. Its train scripts call two of them differently.
_KEYWORDS = {
    "ticks": "iterations",
    "width": "d_model",
    "memory": "memory_length",
    "attention_width": "d_input",
    "heads": "heads",
    "out_neurons": "n_synch_out",
    "action_neurons": "n_synch_action",
    "out_dims": "out_dims",
    "prediction_shape": "prediction_reshaper",
    "neuron_selection": "neuron_select_type",
    "self_pairs": "n_random_pairing_self",
    "synapse_depth": "synapse_depth",
    "nlm_deep": "deep_nlms",
    "nlm_hidden": "memory_hidden_dims",
    "nlm_layernorm": "do_layernorm_nlm",
    "backbone": "backbone_type",
    "positional": "positional_embedding_type",
    "dropout": "dropout",
    "nlm_dropout": "dropout_nlm",
}
_SCRIPT_NAMES = {"deep_memory": "deep_nlms", "do_normalisation": "do_layernorm_nlm"}
_ENERGY_KEYWORDS = ("energy_head_enabled", "energy_hidden_dim")
_OURS = "ctm_serving"
"""One more key, in which we keep what the reference has no word for; its own loader passes over it."""
_OUR_SETTINGS = ("input_shape", "input_mean", "input_std")

_REQUIRED = ("iterations", "d_model", "d_input", "heads", "n_synch_out", "n_synch_action", "synapse_depth",
             "memory_length", "deep_nlms", "memory_hidden_dims", "do_layernorm_nlm", "backbone_type",
             "positional_embedding_type", "out_dims")  # fmt: skip

_ENERGY_WEIGHT = "energy_proj.0.weight"

ENERGY_HIDDEN = 64
"""The energy fork's default width."""


class ReferenceFormatError(ValueError):
    """Something that should be a reference model is not; says what was met and what was expected."""


def config_from_reference(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> CTMConfig:
    """Our configuration from the keyword arguments of the reference's constructor.

    Args:
        settings: strict: an unknown or missing name raises ReferenceFormatError.
        weights: the reference's state dict, for what the settings do not say: how many channels come in.
    """
    known = {*_KEYWORDS.values(), *_ENERGY_KEYWORDS, _OURS}
    if unknown := sorted(settings.keys() - known):
        raise ReferenceFormatError(f"unknown settings {unknown}, known are {sorted(known)}")
    if missing := [name for name in _REQUIRED if name not in settings]:
        raise ReferenceFormatError(f"missing settings {missing}")
    values = {ours: settings[theirs] for ours, theirs in _KEYWORDS.items() if theirs in settings}
    values["prediction_shape"] = _prediction_shape(settings.get("prediction_reshaper"), settings["out_dims"])
    values["backbone"] = str(values["backbone"]).removesuffix("_backbone")
    values["in_channels"] = _in_channels(values["backbone"], weights)
    if settings.get("energy_head_enabled", _ENERGY_WEIGHT in weights):
        found = len(weights[_ENERGY_WEIGHT]) if _ENERGY_WEIGHT in weights else ENERGY_HIDDEN
        values["energy_hidden"] = settings.get("energy_hidden_dim", found)
    try:
        return CTMConfig.from_dict({**values, **settings.get(_OURS, {})})
    except ValueError as error:
        raise ReferenceFormatError(f"settings that make no CTM: {error}") from error


def config_to_reference(config: CTMConfig) -> dict[str, Any]:
    """The keyword arguments with which the reference's constructor builds the same model."""
    values = config.to_dict()
    settings = {theirs: values[ours] for ours, theirs in _KEYWORDS.items()}
    settings["prediction_reshaper"] = values["prediction_shape"] or [-1]
    settings["backbone_type"] = "parity_backbone" if config.backbone == "parity" else config.backbone
    if config.energy_hidden is not None:
        settings.update(energy_head_enabled=True, energy_hidden_dim=config.energy_hidden)
    if ours := {name: values[name] for name in _OUR_SETTINGS if values[name]}:
        settings[_OURS] = ours
    return settings


def settings_from_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's keyword arguments from those of a train script, of which most are about training.

    Old scripts named the backbone in two parts and selected neurons first-last without saying so; none keeps the
    shape of a prediction.
    """
    settings = {_SCRIPT_NAMES.get(name, name): value for name, value in arguments.items()}
    if "backbone_type" not in settings and "resnet_type" in settings:
        settings["backbone_type"] = f"{settings['resnet_type']}-{settings.get('resnet_feature_scales', [4])[-1]}"
    settings.setdefault("neuron_select_type", "first-last")
    if "prediction_reshaper" not in settings and "out_dims" in settings:
        if "maze_route_length" in settings or str(settings.get("dataset")).startswith("mazes"):
            settings["prediction_reshaper"] = [settings["out_dims"] // 5, 5]
        elif "parity_sequence_length" in settings:
            settings["prediction_reshaper"] = [settings["out_dims"] // 2, 2]
    known = {*_KEYWORDS.values(), *_ENERGY_KEYWORDS}
    return {name: value for name, value in settings.items() if name in known}


def _prediction_shape(reshaper: list[int] | None, out_dims: int) -> tuple[int, ...]:
    """The shape without its -1, and empty when it says no more than `out_dims` does."""
    shape = list(reshaper or [-1])
    if -1 in shape:
        others = 1
        for size in shape:
            others *= 1 if size == -1 else size
        shape[shape.index(-1)] = out_dims // others
    return () if shape == [out_dims] else tuple(shape)


def _in_channels(backbone: str, weights: Mapping[str, Tensor]) -> int:
    """Read off the first layer that sees the input."""
    if backbone == "parity":
        return 1
    first = "kv_proj.0.weight" if backbone == "none" else "backbone.layers.0.weight"
    if backbone in RESNETS:
        first = "initial_rgb.weight"
    if first not in weights or weights[first].dim() < 2:
        raise ReferenceFormatError(f"missing weight {first!r}, from which the input's channels would be read")
    return weights[first].shape[1]
