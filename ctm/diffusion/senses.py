"""What a thought sees: the patches of a noisy image, told its level, its class, and what was handed on to it.

token_p = W patch_p + place_p + W' code(level) + class  [+ W'' patch_p of the last estimate]
"""

# Shapes: N rows, S side, P patches, L tokens (P and more), E width.

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.grid import cut
from ctm.diffusion.level import level_code

Fed = Mapping[str, Tensor]
"""What the reverse step before handed on, by name; of zeros before the first."""


class Seen(NamedTuple):
    """What a thought attends to."""

    tokens: Tensor
    """[N, L, E]"""
    hidden: Tensor | None
    """[N, L] true where a row has no token; None where all have all."""
    losses: Mapping[str, Tensor]
    """Scalars that training descends as well, by the name of their weight."""


class Senses(nn.Module):
    """From images to tokens."""

    def __init__(self, config: DiffusionConfig) -> None:
        """Weights are drawn from torch's generator."""
        super().__init__()
        self.config = config
        self.patches = nn.Linear(config.patch**2, config.width)
        self.place = nn.Parameter(0.02 * torch.randn(config.tokens, config.width))
        self.level = nn.Linear(config.width, config.width)
        self.label = nn.Embedding(config.classes, config.width)
        self.estimate = nn.Linear(config.patch**2, config.width) if config.refine else None

    @property
    def tokens(self) -> int:
        """[L]"""
        return self.config.tokens

    def forward(self, noisy: Tensor, level_N: Tensor, label_N: Tensor, fed: Fed) -> Seen:
        """Look at images of [N, S, S]."""
        told = self.level(level_code(level_N, self.config.width)) + self.label(label_N)
        tokens = self.patches(cut(noisy, self.config.patch)) + self.place + told.unsqueeze(1)
        if self.estimate is not None:
            tokens = tokens + self.estimate(cut(fed["estimate"], self.config.patch))
        return Seen(tokens, None, {})
