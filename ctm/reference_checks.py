"""Whether weights from elsewhere can be a model's: each a plain tensor of finite numbers, all of the right shape."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ctm.config import CTMConfig
from ctm.reference_config import ReferenceFormatError

Weights = Mapping[str, Tensor]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_NEURONS = "_neuron_indices_"
_COUNTER = ".num_batches_tracked"

# Each of these sizes makes at least as many numbers.
_SIZES = ("width", "memory", "attention_width", "out_pairs", "action_pairs", "out_dims", "synapse_depth")


def check_tensors(weights: Weights) -> None:
    """Raise one error that names every weight whose numbers a model cannot be made of, whatever its shape."""
    if wrong := [f"{name} {reason}" for name, weight in weights.items() if (reason := _unusable(name, weight))]:
        raise ReferenceFormatError("weights that are of no use: " + "; ".join(wrong))


def check_sizes(config: CTMConfig, weights: Weights) -> None:
    """Raise an error where a setting asks for more than all the weights hold: nothing is made of that size."""
    numbers = sum(weight.numel() for weight in weights.values())
    for name in _SIZES:
        if (size := getattr(config, name)) > numbers:
            raise ReferenceFormatError(f"the weights hold {numbers} numbers, too few for {name} = {size}")


def check_shapes(config: CTMConfig, expected: Weights, weights: Weights) -> None:
    """Raise one error that names every weight that is missing, unknown, or not what the settings make it.

    Args:
        expected: of a model with these settings; of its numbers only the neurons of `first-last` count.
    """
    wrong = [f"missing {name} {list(expected[name].shape)}" for name in expected if name not in weights]
    wrong += [f"unknown {name}" for name in weights if name not in expected]
    for name, tensor in expected.items():
        if name in weights and weights[name].shape != tensor.shape:
            wrong.append(f"{name} is {list(weights[name].shape)}, expected {list(tensor.shape)}")
        elif name in weights and _NEURONS in name:
            wrong += _check_neurons(config, name, tensor, weights[name])
    if wrong:
        raise ReferenceFormatError("the weights do not fit the settings: " + "; ".join(wrong))


def _unusable(name: str, weight: Tensor) -> str:
    """Why a model cannot be made of a weight; empty when it can."""
    if weight.is_meta or weight.is_nested or weight.layout != torch.strided:
        return "must be a dense tensor with values, got one that is " + (
            "on the meta device" if weight.is_meta else "nested" if weight.is_nested else str(weight.layout)
        )
    if _NEURONS in name or name.endswith(_COUNTER):
        return "" if weight.dtype in _INTEGERS else f"must hold integers, got {weight.dtype}"
    if weight.dtype not in _FLOATS:
        return f"must hold floating-point numbers, got {weight.dtype}"
    weight = weight.detach().float()  # What the model will hold: a larger float may be infinite there, or zero.
    if not weight.isfinite().all():
        return "must hold finite numbers, got " + ("NaN" if weight.isnan().any() else "infinity")
    if name.endswith(".T") and not weight.all():
        return "must be a temperature other than 0, by which activations are divided, got 0"
    return ""


def _check_neurons(config: CTMConfig, name: str, expected: Tensor, neurons: Tensor) -> list[str]:
    if neurons.min() < 0 or neurons.max() >= config.width:
        return [f"{name} must hold neurons 0 to {config.width - 1}"]
    if config.neuron_selection == "first-last" and not torch.equal(neurons.long(), expected):
        # The reference would overlook them and take the first and last neurons all the same.
        return [f"{name} holds other neurons than first-last selects"]
    return []
