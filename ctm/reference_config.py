"""The settings of the reference implementation, and ours."""

from collections.abc import Mapping
from math import prod
from reprlib import repr as short
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
_HYPER_DEFAULTS = {"hyper_layers": "bottleneck", "hyper_rank": 8, "use_hyper_nlm": False, "hyper_nlm_rank": 4}
"""The hyper fork's constructor has these too."""
_OURS = "ctm_serving"
"""One more key, in which we keep what the reference has no word for; its own loader passes over it."""
_OUR_SETTINGS = ("input_shape", "input_mean", "input_std", "hyper_gate")

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
    known = {*_KEYWORDS.values(), *_ENERGY_KEYWORDS, *_HYPER_DEFAULTS, _OURS}
    if unknown := sorted(map(str, settings.keys() - known)):
        raise ReferenceFormatError(f"unknown settings {unknown}, known are {sorted(known)}")
    if missing := [name for name in _REQUIRED if name not in settings]:
        raise ReferenceFormatError(f"missing settings {missing}")
    values = {ours: settings[theirs] for ours, theirs in _KEYWORDS.items() if theirs in settings}
    values["prediction_shape"] = _prediction_shape(settings.get("prediction_reshaper"), settings["out_dims"])
    values["backbone"] = str(values["backbone"]).removesuffix("_backbone")
    values["in_channels"] = _in_channels(values["backbone"], weights)
    values["energy_hidden"] = _energy_hidden(settings, weights)
    values.update(_hyper(settings))
    if values.get("neuron_selection", "random-pairing") != "random-pairing":
        values["self_pairs"] = 0  # The reference's scripts say 256 by default, and its model then passes over it.
    try:
        return CTMConfig.from_dict({**values, **_our_settings(settings)})
    except (ValueError, RecursionError) as error:
        raise ReferenceFormatError(f"settings that make no CTM: {error}") from error


def config_to_reference(config: CTMConfig, *, hyper: bool) -> dict[str, Any]:
    """The keyword arguments with which the reference's constructor builds the same model.

    Args:
        hyper: whether the constructor is the hyper fork's.
    """
    values = config.to_dict()
    settings = {theirs: values[ours] for ours, theirs in _KEYWORDS.items()}
    settings["prediction_reshaper"] = values["prediction_shape"] or [-1]
    settings["backbone_type"] = "parity_backbone" if config.backbone == "parity" else config.backbone
    if config.energy_hidden is not None:
        settings.update(energy_head_enabled=True, energy_hidden_dim=config.energy_hidden)
    if hyper:
        nlm_rank = config.hyper_nlm_rank
        settings.update(hyper_layers=values["hyper_layers"], hyper_rank=config.hyper_rank)
        settings.update(use_hyper_nlm=nlm_rank is not None, hyper_nlm_rank=_HYPER_DEFAULTS["hyper_nlm_rank"])
        if nlm_rank is not None:
            settings["hyper_nlm_rank"] = nlm_rank
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
        scales = settings.get("resnet_feature_scales", [4])
        if not isinstance(scales, (list, tuple)) or not scales:
            raise ReferenceFormatError(f"resnet_feature_scales must be a list of stages, got {short(scales)}")
        settings["backbone_type"] = f"{settings['resnet_type']}-{scales[-1]}"
    settings.setdefault("neuron_select_type", "first-last")
    if "prediction_reshaper" not in settings and isinstance(settings.get("out_dims"), int):
        if "maze_route_length" in settings or str(settings.get("dataset")).startswith("mazes"):
            settings["prediction_reshaper"] = [settings["out_dims"] // 5, 5]
        elif "parity_sequence_length" in settings:
            settings["prediction_reshaper"] = [settings["out_dims"] // 2, 2]
    known = {*_KEYWORDS.values(), *_ENERGY_KEYWORDS}
    if settings.get("use_hyper", "hyper_layers" in settings):
        # The image script tells of the fork's options whether it makes use of them or not.
        known |= _HYPER_DEFAULTS.keys()
    return {name: value for name, value in settings.items() if name in known}


def _prediction_shape(reshaper: object, out_dims: object) -> tuple[int, ...]:
    """The shape without its -1, and empty when it says no more than `out_dims` does."""
    shape = [-1] if reshaper is None else reshaper
    if not isinstance(shape, (list, tuple)) or not all(
        type(size) is int and (size > 0 or size == -1) for size in shape
    ):
        raise ReferenceFormatError(f"prediction_reshaper must be a list of sizes, or -1 for one, got {short(reshaper)}")
    if shape.count(-1) > 1:
        raise ReferenceFormatError(f"prediction_reshaper may leave one size open with -1, got {short(reshaper)}")
    if type(out_dims) is not int:
        raise ReferenceFormatError(f"out_dims must be a whole number of at least 1, got {short(out_dims)}")
    others = prod(size for size in shape if size != -1)
    whole = tuple(out_dims // others if size == -1 else size for size in shape)
    return () if whole == (out_dims,) else whole


def _our_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """What we keep beside the reference's settings; never one of those in other words."""
    ours = settings.get(_OURS, {})
    if not isinstance(ours, Mapping) or not ours.keys() <= set(_OUR_SETTINGS):
        raise ReferenceFormatError(f"{_OURS} must be an object with keys of {_OUR_SETTINGS}, got {short(ours)}")
    return ours


def _hyper(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Our words for what the hyper fork would make of the settings."""
    if not settings.keys() & _HYPER_DEFAULTS.keys():
        return {}
    theirs = {**_HYPER_DEFAULTS, **settings}
    layers, use_nlm = theirs["hyper_layers"], theirs["use_hyper_nlm"]
    if not isinstance(use_nlm, bool):
        raise ReferenceFormatError(f"use_hyper_nlm must be true or false, got {short(use_nlm)}")
    if isinstance(layers, (set, frozenset)):
        layers = tuple(layers)
    values = {"hyper_nlm_rank": theirs["hyper_nlm_rank"] if use_nlm else None}
    # A synapse model without a U-Net has no layers that could be hyper, and the fork then passes over them.
    if layers != "none" and settings["synapse_depth"] != 1:
        values.update(hyper_layers=layers, hyper_rank=theirs["hyper_rank"])
    return values


def _energy_hidden(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Any:
    """The energy head's hidden width as the settings say it, or else its weights; None without a head."""
    enabled = settings.get("energy_head_enabled", _ENERGY_WEIGHT in weights)
    if not isinstance(enabled, bool):
        raise ReferenceFormatError(f"energy_head_enabled must be true or false, got {short(enabled)}")
    if not enabled:
        return None
    if "energy_hidden_dim" in settings:
        return settings["energy_hidden_dim"]
    return _rows_and_columns(weights, _ENERGY_WEIGHT)[0] if _ENERGY_WEIGHT in weights else ENERGY_HIDDEN


def _in_channels(backbone: str, weights: Mapping[str, Tensor]) -> int:
    """Read off the first layer that sees the input."""
    if backbone == "parity":
        return 1
    first = "kv_proj.0.weight" if backbone == "none" else "backbone.layers.0.weight"
    if backbone in RESNETS:
        first = "initial_rgb.weight"
    if first not in weights:
        raise ReferenceFormatError(f"missing weight {first!r}, from which the input's channels would be read")
    return _rows_and_columns(weights, first)[1]


def _rows_and_columns(weights: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    shape = weights[name].shape
    if len(shape) < 2:
        raise ReferenceFormatError(f"{name} must have at least 2 dimensions, got shape {list(shape)}")
    return shape[0], shape[1]
