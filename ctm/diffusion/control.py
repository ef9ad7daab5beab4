"""What happens to a thought's state on its way to the denoiser: what may gate it, and what may move it."""

# Shapes: N rows, S state.

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ctm.diffusion.config import DiffusionConfig


class Controlled(NamedTuple):
    """A state as the denoiser may see it."""

    state: Tensor
    """[N, S]"""
    losses: Mapping[str, Tensor]
    """Scalars that training descends as well, by the name of their weight."""


class Control(nn.Module):
    """From the state of the tick that answers to what guides; the identity unless something is switched on."""

    def __init__(self, config: DiffusionConfig) -> None:
        """Weights are drawn from torch's generator."""
        super().__init__()
        self.config = config

    def forward(self, state_NS: Tensor, certainty_N: Tensor) -> Controlled:
        """Take one tick's state, [N, S], and how certain it is."""
        del certainty_N  # nothing that is switched on asks for it yet
        return Controlled(state_NS, {})
