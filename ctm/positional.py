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
        y, x = _grid(1.0, features, self.frequencies.weight)
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
    """Row and column each turn one learned vector by up to 180 degrees, [1, C, Y, X]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.tensor([0.0, 1.0]))
        self.projection = nn.Linear(4, channels)

    def forward(self, features: Tensor) -> Tensor:
        start_x, start_y = self.start.unbind()
        y, x = _grid(math.pi, features, self.start)
        turned = [*_turn(y, start_x, start_y), *_turn(x, start_x, start_y)]
        embedding: Tensor = self.projection(torch.stack(turned, dim=-1)).permute(2, 0, 1)[None]
        return embedding


class RotationalLine(nn.Module):
    """The position along a line turns the vector (0, 1) by up to 180 degrees, [1, C, L]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(2, channels)

    def forward(self, features: Tensor) -> Tensor:
        angles = _spread(math.pi, features.shape[-1], self.projection.weight)
        embedding: Tensor = self.projection(torch.stack([-angles.sin(), angles.cos()], dim=-1)).T[None]
        return embedding


def _grid(end: float, features: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each position of a feature map, both spread from 0 to `end`, [Y, X]."""
    axes = [_spread(end, features.shape[axis], like) for axis in (-2, -1)]
    y, x = torch.meshgrid(*axes, indexing="ij")
    return y, x


def _spread(end: float, count: int, like: Tensor) -> Tensor:
    """`count` values evenly from 0 to `end`; a single one is 0, where the reference divides by zero."""
    return torch.linspace(0, end, count, dtype=like.dtype, device=like.device)


def _turn(angle: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The vector (x, y) turned by `angle`."""
    return angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y
