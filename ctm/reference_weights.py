"""The names and layouts of weights in the reference implementation, and ours: a table of renamings, read both ways.

The authors' implementation and its hyper fork name the layers of a U-Net differently, hyper or not, and those of
neuron-level models where one is hyper.
"""

# Shapes: D neurons, K inputs and N outputs of a neuron-level layer.

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ctm.config import CTMConfig
from ctm.sync import LARGEST_DECAY, diagonal_of, pair_each_with_each

StateDict = Mapping[str, Tensor]

# By the first word of our name: patterns and what the reference says instead, applied one after the other.
_RENAMINGS: dict[str, list[tuple[str, str]]] = {
    "start_post": [("start_post", "start_activated_state")],
    "action_sync": [(r"action_sync\.decay", "decay_params_action"), (r"action_sync\.", "action_neuron_indices_")],
    "out_sync": [(r"out_sync\.decay", "decay_params_out"), (r"out_sync\.", "out_neuron_indices_")],
    "backbone": [
        (r"^backbone\.rgb\.", "initial_rgb."),
        (r"\.stem\.0\.", ".conv1."),
        (r"\.stem\.1\.", ".bn1."),
        *((rf"\.stages\.{stage}\.", f".layer{stage + 1}.") for stage in range(4)),
        *((rf"\.body\.{3 * index}\.", f".conv{index + 1}.") for index in range(3)),
        *((rf"\.body\.{3 * index + 1}\.", f".bn{index + 1}.") for index in range(3)),
        (r"\.shortcut\.", ".downsample."),
    ],
    "positional": [
        (r"^positional\.", "positional_embedding."),
        (r"\.embeddings\.", ".embedders."),
        (r"\.frequencies\.", ".Wr."),
        (r"\.start$", ".start_vector"),
    ],
    "embedding": [(r"^embedding\.", "kv_proj.")],
    "query": [(r"^query\.", "q_proj.")],
    "attention": [(r"\.out\.", ".out_proj."), (r"\.(query|key|value)\.", ".in_proj_")],
    "synapse": [
        (r"^synapse\.linear\.", "synapses.1."),
        (r"^synapse\.norm\.", "synapses.3."),
        (r"^synapse\.first\.linear\.", "synapses.first_projection.0."),
        (r"^synapse\.first\.norm\.", "synapses.first_projection.1."),
        (r"^synapse\.(down|up)\.(\d+)\.linear\.", r"synapses.\1_projections.\2.1."),
        (r"^synapse\.(down|up)\.(\d+)\.norm\.", r"synapses.\1_projections.\2.2."),
        (r"^synapse\.norms\.", "synapses.skip_lns."),
    ],
    "neurons": [
        (r"^neurons\.layers\.0\.", "trace_processor.0.0."),
        (r"^neurons\.layers\.1\.", "trace_processor.0.2."),
        (r"\.norm\.", ".layernorm."),
        (r"^(trace_processor\.0\.\d)\.weight$", r"\1.w1"),
        (r"^(trace_processor\.0\.\d)\.bias$", r"\1.b1"),
        (r"\.temperature$", ".T"),
    ],
    "readout": [(r"^readout\.", "output_projector.0.")],
    "energy": [(r"^energy\.hidden\.", "energy_proj.0."), (r"^energy\.out\.", "energy_proj.2.")],
}

# What the hyper fork then says instead.
_CHANGE_RENAMINGS = [
    (r"\.base\.", ".base_layer."),
    (r"\.change\.compressor\.", ".context_net."),
    (r"\.change\.left\.", ".head_u."),
    (r"\.change\.right\.", ".head_v."),
    (r"\.change\.gate\.", ".head_gate."),
]
_HYPER_RENAMINGS: dict[str, list[tuple[str, str]]] = {
    "synapse": [
        (r"^synapses\.(down|up)_projections\.(\d+)\.1\.", r"synapses.\1_projections.\2.linear."),
        (r"^synapses\.(down|up)_projections\.(\d+)\.2\.", r"synapses.\1_projections.\2.norm."),
        *_CHANGE_RENAMINGS,
    ],
    "neurons": [
        (r"^trace_processor\.0\.", "trace_processor.layers."),
        *_CHANGE_RENAMINGS,
    ],
}
_HYPER_NAMES = re.compile(r"synapses\.(down|up)_projections\.\d+\.(linear|norm)\..*|trace_processor\.layers\..*")


class Layout(NamedTuple):
    """How one tensor of ours becomes theirs, and back."""

    outward: Callable[[Tensor], Tensor]
    inward: Callable[[Tensor], Tensor]


_SAME = Layout(lambda tensor: tensor, lambda tensor: tensor)

_LAYOUTS = [
    (
        r"neurons\.layers\.\d\.weight",
        Layout(lambda w_DKN: w_DKN.permute(1, 2, 0), lambda w_KND: w_KND.permute(2, 0, 1)),
    ),
    (r"neurons\.layers\.\d\.bias", Layout(lambda bias: bias[None], lambda bias: bias[0])),
    (r"neurons\.layers\.\d\.temperature", Layout(lambda scalar: scalar[None], lambda scalar: scalar[0])),
    # The reference clamps while it runs; ours are in range from the start.
    (r"(action|out)_sync\.decay", Layout(lambda decay: decay, lambda decay: decay.clamp(0.0, LARGEST_DECAY))),
]

# The reference keeps the selected neurons where we keep the pairs that follow from them.
_PAIR_LAYOUTS = [
    (
        r"(action|out)_sync\.left",
        Layout(lambda left: left[diagonal_of(len(left))], lambda left: pair_each_with_each(left, left)[0]),
    ),
    (
        r"(action|out)_sync\.right",
        Layout(lambda right: right[diagonal_of(len(right))], lambda right: pair_each_with_each(right, right)[1]),
    ),
]


def has_hyper_names(theirs: Iterable[str]) -> bool:
    """Whether names of weights are those of the hyper fork, where it differs from the authors' implementation."""
    return any(_HYPER_NAMES.fullmatch(name) for name in theirs)


def weights_to_reference(config: CTMConfig, ours: StateDict, *, hyper_names: bool | None = None) -> dict[str, Tensor]:
    """Our state dict as the reference would have saved it. Also serves for gradients, which lie as their weights do.

    Args:
        hyper_names: whether layers are named as in the hyper fork; None means where the model is hyper.
    """
    theirs = {}
    for their_name, names in _names(config, ours, config.hyper if hyper_names is None else hyper_names).items():
        parts = [_layout(name, config).outward(ours[name]) for name in names]
        theirs[their_name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return theirs


def weights_from_reference(config: CTMConfig, ours: StateDict, theirs: StateDict) -> dict[str, Tensor]:
    """`theirs`, whose names and shapes have been checked, under the names of `ours`."""
    return {
        name: _layout(name, config).inward(part)
        for their_name, names in _names(config, ours, has_hyper_names(theirs)).items()
        for name, part in zip(names, _split(theirs[their_name], len(names)), strict=True)
    }


def _split(tensor: Tensor, parts: int) -> tuple[Tensor, ...]:
    return tensor.chunk(parts) if parts > 1 else (tensor,)


def _names(config: CTMConfig, ours: StateDict, hyper_names: bool) -> dict[str, list[str]]:
    """Their names, each with those of ours that it holds: one, or query, key and value stacked."""
    names: dict[str, list[str]] = {}
    for name in ours:
        names.setdefault(_rename(name, config, hyper_names), []).append(name)
    return names


def _rename(name: str, config: CTMConfig, hyper_names: bool) -> str:
    first = name.split(".")[0]
    renamings = _RENAMINGS.get(first, [])
    if hyper_names and (first == "synapse" or config.hyper_nlm_rank is not None):
        renamings = renamings + _HYPER_RENAMINGS.get(first, [])
    for pattern, theirs in renamings:
        name = re.sub(pattern, theirs, name)
    if config.positional == "custom-rotational":
        name = re.sub(r"^(positional_embedding\.projection)\.", r"\1.0.", name)
    if name == f"trace_processor.layers.{2 * config.nlm_deep}.w1":
        name += "_base"
    return name


def _layout(name: str, config: CTMConfig) -> Layout:
    pairs = [] if config.neuron_selection == "random-pairing" else _PAIR_LAYOUTS
    return next((layout for pattern, layout in _LAYOUTS + pairs if re.fullmatch(pattern, name)), _SAME)
