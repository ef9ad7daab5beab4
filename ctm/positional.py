"""Positional embeddings: what is added to the features so that a thought knows where it looks."""

# Shapes: C feature channels, Y rows and X columns of a feature map, L positions of a line.

import math

import torch
from torch import Tensor, nn

from ctm.config import CTMConfig


def build_positional(config: CTMConfig, channels: int) -> nn.Module | None:
    """The positional embedding that `config.positional` names; its output is added to features [B, C, ...]."""
    match config.positional:
        case "learnable-fourier":
            return Fourier(channels)
        case "multi-learnable-fourier":
            return MultiFourier(channels)
        case "custom-rotational":
            return Rotational(channels)
        case "custom-rotational-1d":
            return RotationalLine(channels)
    return None


class Fourier(nn.Module):
    """Learned Fourier features of the two coordinates, [1, C, Y, X] (Li et al., arXiv 2106.02795)."""

    FREQUENCIES = 128
    HIDDEN = 64

    def __init__(self, channels: int, gamma: float = 0.4) -> None:
        """Frequencies start with a standard deviation of gamma^-2: the smaller, the finer."""
        super().__init__()
        self.frequencies = nn.Linear(2, self.FREQUENCIES, bias=False)
        nn.init.normal_(self.frequencies.weight, std=gamma**-2)
        self.mlp = nn.Sequential(
            nn.Linear(2 * self.FREQUENCIES, 2 * self.HIDDEN),
            nn.GLU(),
            nn.Linear(self.HIDDEN, channels),
            nn.LayerNorm(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        rows, columns = features.shape[-2:]
        weight = self.frequencies.weight
        y, x = torch.meshgrid(_unit_range(rows, weight), _unit_range(columns, weight), indexing="ij")
        angles = self.frequencies(torch.stack([x, y], dim=-1))
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1) / math.sqrt(2 * self.FREQUENCIES)
        embedding: Tensor = self.mlp(waves).permute(2, 0, 1)[None]
        return embedding


class MultiFourier(nn.Module):
    """A learned mean of ten Fourier embeddings, from coarse to fine, [1, C, Y, X]."""

    EMBEDDINGS = 10

    def __init__(self, channels: int) -> None:
        super().__init__()
        gammas = [1 - 0.9 * index / (self.EMBEDDINGS - 1) for index in range(self.EMBEDDINGS)]
        self.embeddings = nn.ModuleList(Fourier(channels, gamma) for gamma in gammas)
        self.combination = nn.Parameter(torch.ones(self.EMBEDDINGS))

    def forward(self, features: Tensor) -> Tensor:
        stacked = torch.stack([embedding(features) for embedding in self.embeddings])
        return torch.einsum("k,k...->...", self.combination.softmax(0), stacked)


class Rotational(nn.Module):
    """Row and column each turn one learned vector by up to 180 degrees, [1, C, Y, X]; needs Y = X."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.tensor([0.0, 1.0]))
        self.projection = nn.Linear(4, channels)

    def forward(self, features: Tensor) -> Tensor:
        rows, columns = features.shape[-2:]
        if rows != columns:
            raise ValueError(f"custom-rotational needs square features, got {rows} x {columns}")
        turned = _half_turn(columns, self.start)
        row = turned[:, None].expand(-1, columns, -1)
        column = turned[None].expand(rows, -1, -1)
        embedding: Tensor = self.projection(torch.cat([row, column], dim=-1)).permute(2, 0, 1)[None]
        return embedding


class RotationalLine(nn.Module):
    """The position along a line turns the vector (0, 1) by up to 180 degrees, [1, C, L]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(2, channels)

    def forward(self, features: Tensor) -> Tensor:
        start = self.projection.weight.new_tensor([0.0, 1.0])
        embedding: Tensor = self.projection(_half_turn(features.shape[-1], start)).T[None]
        return embedding


def _unit_range(count: int, like: Tensor) -> Tensor:
    """`count` coordinates from 0 to 1; a single one is 0 (the reference divides by zero there)."""
    return torch.arange(count, dtype=like.dtype, device=like.device) / max(count - 1, 1)


def _half_turn(count: int, start: Tensor) -> Tensor:
    """`start` turned by angles evenly from 0 to 180 degrees, [count, 2]."""
    angles = torch.linspace(0, math.pi, count, dtype=start.dtype, device=start.device)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([cos * start[0] - sin * start[1], sin * start[0] + cos * start[1]], dim=-1)
