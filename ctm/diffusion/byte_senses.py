"""Two ways for a thought to see an image as bytes: at several granularities, and as patches cut by surprise.

Both read the noisy image's own bytes, so that they see the same while learning and while sampling.
"""

# Shapes: N rows, S side, B = S * S bytes, P patches of the grid, M room for dynamic patches, E width.

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctm.diffusion.entropy_model import next_byte_loss
from ctm.diffusion.granularity import Granularity, GranularityConfig
from ctm.diffusion.grid import cut
from ctm.diffusion.patcher import DynamicEntropyPatcher
from ctm.diffusion.patches import PatcherConfig


class CoveredBytes(nn.Module):
    """Features of runs of bytes, brought to the patches of the grid that these bytes are pixels of."""

    share: Tensor

    def __init__(self, config: GranularityConfig, side: int, patch: int) -> None:
        super().__init__()
        self.granularity = Granularity(config)
        token_SS = (torch.arange(side**2) // config.token).view(1, side, side)
        covered_PT = nn.functional.one_hot(cut(token_SS, patch)[0], config.tokens).float().mean(1)
        self.register_buffer("share", covered_PT, persistent=False)

    def forward(self, bytes_NB: Tensor) -> Tensor:
        """[N, P, E]: to each patch the mean over its pixels of what the token with that pixel is like."""
        features: Tensor = self.share @ self.granularity(bytes_NB)
        return features


class Surprises(NamedTuple):
    """The dynamic patches of rows as tokens."""

    tokens: Tensor
    """[N, M, E]"""
    hidden: Tensor
    """[N, M] true where a row has no such patch."""
    loss: Tensor
    """Scalar, in nats a byte: what the entropy model learns by."""


class SurprisePatches(nn.Module):
    """Tokens of the patches that a `DynamicEntropyPatcher` finds."""

    def __init__(self, config: PatcherConfig) -> None:
        super().__init__()
        self.patcher = DynamicEntropyPatcher(config)
        self.begin = nn.Embedding(config.length, config.width)
        """Where in the row of bytes a patch begins."""

    def forward(self, bytes_NB: Tensor) -> Surprises:
        """Of [N, B] bytes."""
        found = self.patcher(bytes_NB)
        lengths_NM = found.patches.lengths
        begin_NM = (lengths_NM.cumsum(1) - lengths_NM).clamp(max=self.begin.num_embeddings - 1)
        return Surprises(found.vectors + self.begin(begin_NM), lengths_NM == 0, next_byte_loss(found.logits, bytes_NB))
