"""Watches thoughts while a diffusion model warms up, and then chooses the pairs of their syncs, once.

    every batch ── watch ──> NeuronActivity          warm-up over ── rule ──> pairs, frozen into the weights

What is watched, and for how long it has been, are buffers: an interrupted warm-up goes on as if it had not been.
"""

# Shapes: N rows, T ticks, D neurons.

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from ctm.diffusion.neuron_activity import NeuronActivity
from ctm.diffusion.neuron_selection import Begun, SelectionConfig, select_and_freeze
from ctm.model import CTM


class PairSelector(nn.Module):
    """Counts updates; holds what was seen until the choice is made."""

    updates: Tensor

    def __init__(self, config: SelectionConfig, neurons: int, classes: int, *, seed: int) -> None:
        """`seed` is for what a rule draws."""
        super().__init__()
        self.config, self.classes, self.seed = config, classes, seed
        self.activity = NeuronActivity(neurons, classes, keep=config.keep)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def watch(self, post_NTD: Tensor, label_N: Tensor, error_NT: Tensor) -> None:
        """Take in a batch of thoughts, the class of each image, and how wrong each tick was; nothing once chosen."""
        if int(self.updates) < self.config.warmup_updates:
            self.activity.observe(post_NTD, F.one_hot(label_N, self.classes), error_NT)

    @torch.no_grad()
    def after_update(self, core: CTM, readers: Sequence[nn.Linear]) -> list[Begun]:
        """Count an update, and say which weights began anew: at one update, that after which pairs are chosen.

        Args:
            readers: layers that read the out sync besides the core's own, in their first inputs.
        """
        self.updates += 1
        if int(self.updates) != self.config.warmup_updates:
            return []
        if distributed.is_available() and distributed.is_initialized():
            # Each process watched rows of its own; the first one's pairs are everyone's.
            for sums in self.activity.buffers():
                distributed.broadcast(sums, src=0)
        return select_and_freeze(core, self.activity, self.config, self.seed, readers)
