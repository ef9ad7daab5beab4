"""Noise schedules: how much of an image is left at each level of noise, and what follows from it.

    x_l = signal_l x_0 + spread_l eps,   signal_l^2 + spread_l^2 = 1,   l = 0 .. L - 1, least noise first

Linear: the added variance grows in a line (DDPM, arXiv 2006.11239). Cosine: signal^2 falls along a squared cosine
(arXiv 2102.09672). A network may predict the noise, eps, or the velocity v = signal eps - spread x_0
(arXiv 2202.00512): either gives both x_0 and eps.
"""

# Shapes: N rows, l one level of noise a row.

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

ScheduleName = Literal["linear", "cosine"]
Target = Literal["noise", "velocity"]

_COSINE_OFFSET = 0.008
_LARGEST_BETA = 0.999


class Parts(NamedTuple):
    """A noisy image taken apart."""

    clean: Tensor
    """The estimate of x_0."""
    noise: Tensor
    """The estimate of eps."""


class NoiseSchedule(nn.Module):
    """The tables of one schedule; not trained."""

    signal: Tensor
    spread: Tensor

    def __init__(self, name: ScheduleName, levels: int) -> None:
        """Make the tables in float64.

        Args:
            levels: at least 2. Level 0 is the least noise, `levels` - 1 the most.
        """
        super().__init__()
        if levels < 2:
            raise ValueError(f"a noise schedule needs at least 2 levels, got {levels}")
        kept_L = _kept(name, levels)
        self.levels = levels
        self.register_buffer("signal", kept_L.sqrt().float(), persistent=False)
        self.register_buffer("spread", (1 - kept_L).sqrt().float(), persistent=False)

    def at(self, level_N: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and spread of each row's level, shaped to multiply `like`, [N, 1, ...]."""
        shape = (-1,) + (1,) * (like.dim() - 1)
        return self.signal[level_N].view(shape), self.spread[level_N].view(shape)

    def add(self, clean: Tensor, noise: Tensor, level_N: Tensor) -> Tensor:
        """x_l of x_0 and eps."""
        signal, spread = self.at(level_N, clean)
        return signal * clean + spread * noise

    def target(self, clean: Tensor, noise: Tensor, level_N: Tensor, kind: Target) -> Tensor:
        """What a network of this kind should predict."""
        if kind == "noise":
            return noise
        signal, spread = self.at(level_N, clean)
        return signal * noise - spread * clean

    def take_apart(self, noisy: Tensor, predicted: Tensor, level_N: Tensor, kind: Target) -> Parts:
        """x_0 and eps, as a prediction of this kind has them."""
        signal, spread = self.at(level_N, noisy)
        if kind == "noise":
            return Parts((noisy - spread * predicted) / signal, predicted)
        return Parts(signal * noisy - spread * predicted, spread * noisy + signal * predicted)


def _kept(name: ScheduleName, levels: int) -> Tensor:
    """signal^2 of every level, float64."""
    if name == "linear":
        # The published end points belong to 1,000 levels; fewer levels add more each, so that all end in noise.
        scale = 1000 / levels
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, levels, dtype=torch.float64)
    else:
        share = torch.arange(levels + 1, dtype=torch.float64) / levels
        kept = torch.cos((share + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2).square()
        betas = 1 - kept[1:] / kept[:-1]
    return (1 - betas.clamp(max=_LARGEST_BETA)).cumprod(0)
