"""Synaptic empathy: how alike two agents' traces run, neuron by neuron, and a pull of the own state to the other's.

    r_d = <a_d, b_d> / (|a_d| |b_d|)        reward = mean_d r_d        modulation_d = s σ(o_d) (1 + r_d) / 2 (b_d - a_d)

a_d and b_d are the own and the observed trace of neuron d; in the modulation, their newest entries. r_d is 1 for traces
in step and -1 for opposite ones, whose neuron is not pulled at all. With s in (0, 1] the own state gets nearer and
never overshoots. o_d is learned: how open a neuron is. Source: the description of CTM-controlled diffusion says what
such a module is for; the formula is ours.
"""

# Shapes: B rows, D neurons, M memory.

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.diffusion.emotion import check_count

Measure = Literal["cosine", "correlation"]

_SILENT = 1e-6
"""A trace shorter than this is all but silent, and resonates the less the more silent it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SynapticEmpathyConfig:
    """How traces are compared and how strongly they pull."""

    width: int
    """[D] Neurons."""

    measure: Measure = "cosine"
    """`correlation` takes each trace's mean away first, so that what stands still does not count."""

    strength: float = 0.5
    """[s] Largest share of the way to the observed state that one tick may go."""

    def __post_init__(self) -> None:
        check_count("synaptic_empathy.width", self.width)
        if self.measure not in get_args(Measure):
            raise ValueError(f"synaptic_empathy.measure must be one of {get_args(Measure)}, got {self.measure!r}")
        if not 0 < self.strength <= 1:
            raise ValueError(f"synaptic_empathy.strength must be above 0 and at most 1, got {self.strength!r}")


class Resonance(NamedTuple):
    """What comes of comparing two traces; float32."""

    by_neuron: Tensor
    """[B, D] in [-1, 1]."""
    reward: Tensor
    """[B] in [-1, 1]."""
    modulation: Tensor
    """[B, D] to be added to the newest entry of the own trace."""


class SynapticEmpathy(nn.Module):
    """Compares and pulls. The observed agent is only observed: no gradient reaches it."""

    def __init__(self, config: SynapticEmpathyConfig) -> None:
        super().__init__()
        self.config = config
        self.openness = nn.Parameter(torch.zeros(config.width))

    def forward(self, own_BDM: Tensor, observed_BDM: Tensor) -> Resonance:
        """Compare traces, both with the newest entry last."""
        own_BDM, observed_BDM = own_BDM.float(), observed_BDM.detach().float()
        by_neuron_BD = resonance(own_BDM, observed_BDM, self.config.measure)
        modulation_BD = self.share(by_neuron_BD) * (observed_BDM[..., -1] - own_BDM[..., -1])
        return Resonance(by_neuron_BD, by_neuron_BD.mean(-1), modulation_BD)

    def share(self, by_neuron_BD: Tensor) -> Tensor:
        """Of the way to the other, how much a neuron that resonates so much goes, [B, D]."""
        return self.config.strength * self.openness.float().sigmoid() * (1 + by_neuron_BD) / 2


def resonance(own_BDM: Tensor, observed_BDM: Tensor, measure: Measure) -> Tensor:
    """How alike the traces of each neuron run, [..., D] in [-1, 1]; 0 where one of them is silent."""
    if measure == "correlation":
        own_BDM = own_BDM - own_BDM.mean(-1, keepdim=True)
        observed_BDM = observed_BDM - observed_BDM.mean(-1, keepdim=True)
    return F.cosine_similarity(own_BDM, observed_BDM, dim=-1, eps=_SILENT)


def empathy_loss(reward: Tensor) -> Tensor:
    """Mean of 1 - reward: 0 in perfect step, 2 in opposition; a scalar."""
    return 1 - reward.mean()
