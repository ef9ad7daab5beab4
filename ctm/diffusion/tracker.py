"""A tracker of when, where and how noisy: time stamps, the neighbourhood of a place at several scales, the step.

    code(t)   = (a_k sin ω_k t, a_k cos ω_k t)     periods 2π / ω_k in equal ratios from shortest to longest,
                                                   a_k as the fourth root of the period, Σ a_k² = 1
    place(x)  = x + W Σ_r conv_r(x)                depthwise 3 x 3, neighbours r = 1, 2, 4, ... places away
    attend(x) = x + Attention(x + code of the place)
    film(x)   = x (1 + scale) + shift              scale and shift from the code of the diffusion step

What holds of codes: their length is 1, and ‖code(t) - code(s)‖ depends on t - s alone. It rises with every moment up to
half of the shortest period, and from 16 numbers on what is four times as far apart in time has the farther code, up to
a twentieth of the longest period; with all a_k alike, as they are elsewhere (arXiv 1706.03762), it need not. Of
`place`: what is moved comes out moved, away from the edges; `attend` knows places and does not promise that. FiLM
(arXiv 1709.07871) begins as the identity.
"""

# Shapes: B rows, C channels, Y rows and X columns of a map, L = Y X places, W width of a code.

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_PLACES = (4.0, 256.0)
"""Shortest and longest period of the codes of rows and columns."""
_STEPS = (2 * math.pi, 2 * math.pi * 10_000)
"""Of diffusion steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerConfig:
    """Scales of time and of space."""

    channels: int
    """[C] Of the feature map; a multiple of 4, for sines and cosines of two coordinates."""
    heads: int = 4
    """Divides `channels`."""
    scales: int = 3
    """Convolutions; the r-th looks 2^r places away."""
    code: int = 32
    """[W] Width of the codes of time and step; even."""
    shortest: float = 1.0
    """Shortest period of time stamps, in their unit: less than half of it apart, earlier is told from later."""
    longest: float = 10_000.0
    """Longest period. float32 tells time stamps apart to about 1e-7 of their size; count from a near beginning."""

    def __post_init__(self) -> None:
        for name in ("channels", "heads", "scales", "code"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"tracker.{name} must be a whole number of at least 1, got {value!r}")
        if self.channels % 4 or self.channels % self.heads:
            raise ValueError(f"tracker.channels must be a multiple of 4 and of heads {self.heads}, got {self.channels}")
        if self.code % 2 or self.code < 4:
            raise ValueError(f"tracker.code must be even and at least 4, got {self.code}")
        if not 0 < self.shortest < self.longest < math.inf:
            raise ValueError(
                f"tracker.shortest and longest must be positive and rising, got {self.shortest} and {self.longest}"
            )


class TemporalSpatialTracker(nn.Module):
    """Tells a feature map when it is, where its parts are, and how far the noise has been taken away."""

    def __init__(self, config: TrackerConfig, *, stamped: bool = True) -> None:
        """`stamped` says whether there are time stamps at all."""
        super().__init__()
        channels = config.channels
        self.config = config
        self.time = nn.Linear(config.code, channels) if stamped else None
        self.neighbours = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=2**scale, dilation=2**scale, groups=channels, bias=False)
            for scale in range(config.scales)
        )
        self.mix = nn.Conv2d(channels, channels, 1)
        self.norm = nn.LayerNorm(channels)
        self.query_key = nn.Linear(channels, 2 * channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.step = nn.Sequential(nn.Linear(config.code, channels), nn.SiLU())
        self.film = nn.Linear(channels, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x_BCYX: Tensor, step_B: Tensor, time_B: Tensor | None = None) -> Tensor:
        """Features of the same shape.

        Args:
            step_B: diffusion steps, or levels of noise.
            time_B: time stamps, for what has them.
        """
        if time_B is not None:
            assert self.time is not None, "a tracker of what has no time stamps is given none"
            stamp_BW = code(time_B, self.config.code, self.config.shortest, self.config.longest)
            x_BCYX = x_BCYX + self.time(stamp_BW.to(x_BCYX))[..., None, None]
        return self.modulate(self.attend(self.place(x_BCYX)), step_B)

    def place(self, x_BCYX: Tensor) -> Tensor:
        """Each place with its neighbourhoods, near and far."""
        seen = torch.stack([neighbours(x_BCYX) for neighbours in self.neighbours]).sum(0)
        placed: Tensor = x_BCYX + self.mix(F.gelu(seen))
        return placed

    def attend(self, x_BCYX: Tensor) -> Tensor:
        """Each place with what is anywhere. Queries and keys know their places; values are what is there."""
        x_BLC = x_BCYX.flatten(2).transpose(1, 2)
        normed_BLC = self.norm(x_BLC)
        height, width = x_BCYX.shape[2:]
        placed_BLC = normed_BLC + place_code(self.config.channels, height, width, like=normed_BLC)
        query, key = self.query_key(placed_BLC).chunk(2, dim=-1)
        query, key, value = (
            torch.unflatten(part, -1, (self.config.heads, -1)).transpose(1, 2)
            for part in (query, key, self.value(normed_BLC))
        )
        found_BLC = self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        seen: Tensor = torch.unflatten((x_BLC + found_BLC).transpose(1, 2), -1, x_BCYX.shape[2:])
        return seen

    def modulate(self, x_BCYX: Tensor, step_B: Tensor) -> Tensor:
        """Features scaled and shifted, channel by channel, by the diffusion step."""
        step_BW = code(step_B, self.config.code, *_STEPS)
        scale, shift = self.film(self.step(step_BW.to(x_BCYX)))[..., None, None].chunk(2, dim=1)
        modulated: Tensor = x_BCYX * (1 + scale) + shift
        return modulated


def code(times: Tensor, width: int, shortest: float, longest: float) -> Tensor:
    """Times of any shape to codes of length 1, [..., width], float32."""
    count = width // 2
    spacing = math.log(longest / shortest) / max(count - 1, 1)
    # Arithmetic on a range, as a list made into a tensor is what a tracer warns of.
    depth = spacing * torch.arange(count, device=times.device, dtype=torch.float32)
    angles = times.float().unsqueeze(-1) * (-depth).exp() * (2 * math.pi / shortest)
    loudness = (depth / 4).exp()
    loudness = loudness / torch.linalg.vector_norm(loudness)
    return torch.cat([loudness * angles.sin(), loudness * angles.cos()], dim=-1)


def place_code(channels: int, height: int, width: int, *, like: Tensor) -> Tensor:
    """Codes of all places, [Y X, C]: one half of the channels says the row, the other the column; elements about 1."""
    size = channels // 2
    rows, columns = (code(torch.arange(count, device=like.device), size, *_PLACES) for count in (height, width))
    both = torch.cat([rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)], dim=-1)
    return both.flatten(0, 1).to(like) * math.sqrt(size / 2)
