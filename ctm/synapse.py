"""Synapse models: the network that mixes what attention found with all neurons into pre-activations (paper eq. 1)."""

# Shapes: B rows, D neurons, I attention width.

from itertools import pairwise

from torch import Tensor, nn

from ctm.config import CTMConfig
from ctm.hyper import HyperLinear, hyper_levels

NARROWEST = 16
"""Width of the U-Net's bottom level."""


def synapse_model(config: CTMConfig) -> nn.Module:
    """Maps [attention output, post-activations], [B, I + D], to pre-activations, [B, D]."""
    if config.synapse_depth == 1:
        return GatedSynapse(config.attention_width + config.width, config.width, config.dropout)
    return UNetSynapse(config)


def unet_widths(width: int, depth: int) -> list[int]:
    """`depth` widths evenly from `width` to 16, each cut down to a whole number as the reference does."""
    spacing = (NARROWEST - width) / (depth - 1)
    return [int(level * spacing + width) for level in range(depth - 1)] + [NARROWEST]


class GatedSynapse(nn.Module):
    """One gated linear layer."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(inputs, 2 * outputs)
        self.gate = nn.GLU()
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.gate(self.linear(self.dropout(x))))
        return y


class Block(nn.Module):
    """Dropout, linear, LayerNorm, SiLU: every move inside the U-Net."""

    def __init__(self, linear: nn.Linear | HyperLinear, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = linear
        self.norm = nn.LayerNorm(outputs)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.norm(self.linear(self.dropout(x))))
        return y


class UNetSynapse(nn.Module):
    """A U-Net of linear blocks: down through the widths, then up again, each level met by its skip.

    ```
    first ─> level 0 ───────────── skip ─> + ─> norm ─> pre-activations
               └ down ─> level 1 ─ skip ─> +─┘up
                           └ down ─> … ───┘up
    ```
    """

    def __init__(self, config: CTMConfig) -> None:
        super().__init__()
        widths = unet_widths(config.width, config.synapse_depth)
        hyper_down, hyper_up = hyper_levels(config)
        self.first = Block(nn.Linear(config.attention_width + config.width, widths[0]), widths[0], 0.0)
        moves = list(enumerate(pairwise(widths)))
        self.down = nn.ModuleList(_block(config, wide, narrow, level in hyper_down) for level, (wide, narrow) in moves)
        self.up = nn.ModuleList(_block(config, narrow, wide, level in hyper_up) for level, (wide, narrow) in moves)
        self.norms = nn.ModuleList(nn.LayerNorm(wide) for wide in widths[:-1])

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.first(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        y: Tensor = levels.pop()
        for up, norm, level in reversed(list(zip(self.up, self.norms, levels, strict=True))):
            y = norm(up(y) + level)
        return y


def _block(config: CTMConfig, inputs: int, outputs: int, hyper: bool) -> Block:
    if hyper:
        return Block(
            HyperLinear(inputs, outputs, rank=config.hyper_rank, gated=config.hyper_gate), outputs, config.dropout
        )
    return Block(nn.Linear(inputs, outputs), outputs, config.dropout)
