"""Basal ganglia: a gate that lets each channel of the action synchronisation through or holds it, and learns by reward.

    heard  = thought · sigmoid(W context)
    gate   = go(heard) (1 - nogo(heard))              a number in [0, 1] for each channel; go, nogo: D -> 2D -> A
    V      = v(heard)                                 the reward that is expected
    δ      = reward - V                               dopamine: what was not expected
    losses : δ² for V; -δ log p(passed) for the gate, where gates are taken as the odds of a channel to pass

Two opposing ways whose balance lets an action go: after the direct and indirect pathways of the basal ganglia. Dopamine
as the reward-prediction error: Schultz, Dayan, Montague, Science 275 (1997). The gate's loss is REINFORCE with V as
its baseline (Williams 1992): it needs no reward that could be differentiated.
"""

# Shapes: B rows, D width of a thought, C of its context, A channels of action.

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.diffusion.emotion import check_count

_OPEN = 2.0
"""Where go begins above, and nogo below, zero: a fresh gate lets about 0.78 of everything through."""
_SURE = 1e-6
"""Keeps the logarithm of a gate that is shut, or wide open, finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BasalGangliaConfig:
    """What a gate is made of; the widths are those of what it gates."""

    hidden: int = 32
    """Width of what expects the reward."""

    def __post_init__(self) -> None:
        check_count("basal_ganglia.hidden", self.hidden)


class Gated(NamedTuple):
    """What came through."""

    action: Tensor
    """[B, A]"""
    gate: Tensor
    """[B, A] in [0, 1]"""
    reward: Tensor
    """[B] V, the reward that is expected."""


class BasalGanglia(nn.Module):
    """Gates the channels of an action by what is thought, and where."""

    def __init__(
        self, thought: int, context: int, action: int, config: BasalGangliaConfig = BasalGangliaConfig()
    ) -> None:
        """Takes the widths of its three inputs."""
        super().__init__()
        self.context = nn.Linear(context, thought)
        self.go, self.nogo = (_way(thought, action, bias) for bias in (_OPEN, -_OPEN))
        self.value = nn.Sequential(nn.Linear(thought, config.hidden), nn.Tanh(), nn.Linear(config.hidden, 1))

    def forward(self, thought_BD: Tensor, context_BC: Tensor, action_BA: Tensor) -> Gated:
        heard_BD = thought_BD * self.context(context_BC).sigmoid()
        # 1 - sigmoid(x) as sigmoid(-x), which loses no digits.
        gate_BA = self.go(heard_BD).sigmoid() * (-self.nogo(heard_BD)).sigmoid()
        return Gated(action_BA * gate_BA, gate_BA, self.value(heard_BD).squeeze(-1))


def _way(thought: int, action: int, bias: float) -> nn.Sequential:
    last = nn.Linear(2 * thought, action)
    with torch.no_grad():
        last.bias.add_(bias)
    return nn.Sequential(nn.Linear(thought, 2 * thought), nn.ReLU(), last)


def dopamine(reward_B: Tensor, expected_B: Tensor) -> Tensor:
    """δ, the reward that was not expected, [B]."""
    return reward_B - expected_B


def value_loss(reward_B: Tensor, expected_B: Tensor) -> Tensor:
    """Mean of δ²; the reward is a constant to it."""
    return F.mse_loss(expected_B, reward_B.detach())


def let_through(gate_BA: Tensor, uniform_BA: Tensor) -> Tensor:
    """Which channels pass when gates are odds, 0 or 1, [B, A], by numbers drawn evenly from [0, 1)."""
    return (uniform_BA < gate_BA).to(gate_BA)


def gate_loss(gate_BA: Tensor, passed_BA: Tensor, dopamine_B: Tensor) -> Tensor:
    """Mean of -δ log p(passed): after an unexpected reward, what was done becomes likelier; after a loss, less so.

    Args:
        passed_BA: what `let_through` said; the reward is that of the action with these channels alone.
        dopamine_B: δ, a constant here.
    """
    odds = gate_BA.float().clamp(_SURE, 1 - _SURE)
    log_p_B = (passed_BA * odds.log() + (1 - passed_BA) * (-odds).log1p()).sum(-1)
    return -(dopamine_B.detach() * log_p_B).mean()
