"""AdamW over a model's weights, and its means as plain tensors that a checkpoint can hold."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ctm.checkpoint import CheckpointError, Tensors
from ctm.training.config import OptimiserConfig

KINDS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of a weight: the first a scalar, the others shaped as the weight."""


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> AdamW:
    """Weight decay is for matrices and larger; a start state is a value, not a map, so it is spared too."""
    named = list(model.named_parameters())
    decayed = [weight for name, weight in named if weight.dim() >= 2 and not _is_start(name)]
    spared = [weight for name, weight in named if weight.dim() < 2 or _is_start(name)]
    return AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.beta_first, config.beta_second),
        eps=config.epsilon,
    )


def _is_start(name: str) -> bool:
    return name.rpartition(".")[2].startswith("start_")


def set_learning_rate(optimiser: Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def means(optimiser: Optimizer) -> dict[str, Tensor]:
    """AdamW's memory, each tensor named by parameter number and kind: `12.exp_avg`."""
    state: dict[int, dict[str, Tensor]] = optimiser.state_dict()["state"]
    return {f"{number}.{kind}": tensor for number, kinds in state.items() for kind, tensor in kinds.items()}


def set_means(optimiser: Optimizer, tensors: Tensors, source: Path) -> None:
    """The opposite of `means`; rates and the like stay those of the configuration.

    Raises:
        CheckpointError: they are not AdamW's, or not of these weights; it names the source.
    """
    weights: list[Tensor] = [weight for group in optimiser.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, kind = name.partition(".")
        if not number.isdecimal() or int(number) >= len(weights) or kind not in KINDS:
            raise CheckpointError(f"{source}: {name} is no mean of one of {len(weights)} weights")
        shape = () if kind == "step" else tuple(weights[int(number)].shape)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{source}: {name} must have the shape {shape}, got {tuple(tensor.shape)}")
        state.setdefault(int(number), {})[kind] = tensor
    if not state or any(len(kinds) < len(KINDS) for kinds in state.values()):
        raise CheckpointError(f"{source} must hold {', '.join(KINDS)} of each weight that was changed")
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


@torch.no_grad()
def forget(optimiser: Optimizer, begun: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Let weights that began anew be pulled by none of the gradients that came before.

    The mean of their squares stays: without it the next updates would be several times as long as any other.

    Args:
        begun: weights, and masks of their shapes that are true where they began anew.
    """
    for weight, where in begun:
        if weight in optimiser.state:
            optimiser.state[weight]["exp_avg"][where] = 0.0


@torch.no_grad()
def average_into(average: nn.Module, model: nn.Module, updates: int, decay: float) -> None:
    """Move the average towards the model's weights; what is no weight, such as pair indices, is copied.

    Args:
        updates: how many the model has had, from 1. Early on the average forgets faster, so that it is not made of
            the random weights it began with. At 0 it begins anew, as a copy.
    """
    keep = min(decay, (1 + updates) / (10 + updates)) if updates else 0.0
    for mine, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - keep)
        else:
            mine.copy_(theirs)
