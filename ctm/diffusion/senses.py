"""What a thought sees: the patches of a noisy image, told its level, its class, and what was handed on to it.

    token_p = W patch_p + place_p + W' code(level) + class  [+ W'' patch_p of the last estimate]
        [+ what granularities make of the bytes that patch_p covers]        [all together through the tracker]
    [further tokens: the dynamic patches of the image's bytes + W' code(level) + class]

What is in brackets is there where it is switched on.
"""

# Shapes: N rows, S side, P patches of the grid, M room for dynamic patches, L = P + M tokens, E width.

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctm.diffusion.byte_senses import CoveredBytes, SurprisePatches
from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.grid import cut, windows
from ctm.diffusion.image_bytes import image_bytes
from ctm.diffusion.level import level_code
from ctm.diffusion.tracker import TemporalSpatialTracker, place_code

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
        self.patches = nn.Linear(config.window, config.width)
        self.place = nn.Parameter(place_code(config.width, config.across, config.across, like=torch.empty(0)))
        self.level = nn.Linear(config.width, config.width)
        self.label = nn.Embedding(config.classes, config.width)
        self.estimate = nn.Linear(config.patch**2, config.width) if config.refine else None
        self.covered = (
            CoveredBytes(config.granularity, config.side, config.patch) if config.granularity is not None else None
        )
        # An image has no time stamp; its level of noise is the diffusion step.
        self.tracker = TemporalSpatialTracker(config.tracker, stamped=False) if config.tracker is not None else None
        self.surprises = SurprisePatches(config.patcher) if config.patcher is not None else None

    @property
    def tokens(self) -> int:
        """[L]"""
        return self.config.tokens + (0 if self.config.patcher is None else self.config.patcher.patches)

    def forward(self, noisy: Tensor, level_N: Tensor, label_N: Tensor, fed: Fed) -> Seen:
        """Look at images of [N, S, S]."""
        told = (self.level(level_code(level_N, self.config.width)) + self.label(label_N)).unsqueeze(1)
        tokens = self.patches(windows(noisy, self.config.patch, self.config.margin)) + self.place + told
        if self.estimate is not None:
            tokens = tokens + self.estimate(cut(fed["estimate"], self.config.patch))
        # Once for both: the same bounds, written twice, leave ONNX's optimiser with a graph in no order.
        bytes_NB = image_bytes(noisy) if self.covered is not None or self.surprises is not None else None
        if self.covered is not None:
            tokens = tokens + self.covered(bytes_NB)
        if self.tracker is not None:
            tokens = self._track(self.tracker, tokens, level_N)
        if self.surprises is None:
            return Seen(tokens, None, {})
        found = self.surprises(bytes_NB)
        hidden_NL = torch.cat([torch.zeros_like(tokens[..., 0], dtype=torch.bool), found.hidden], dim=1)
        return Seen(torch.cat([tokens, found.tokens + told], dim=1), hidden_NL, {"entropy": found.loss})

    def _track(self, tracker: TemporalSpatialTracker, tokens_NPE: Tensor, level_N: Tensor) -> Tensor:
        """The tokens of the grid as a map of patches, and back."""
        across = self.config.side // self.config.patch
        tracked: Tensor = tracker(torch.unflatten(tokens_NPE.transpose(1, 2), -1, (across, across)), level_N)
        return tracked.flatten(2).transpose(1, 2)
