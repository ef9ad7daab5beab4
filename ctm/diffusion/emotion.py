"""Emotion states: a few numbers that follow an agent's activity over ticks, its own or that of one it observes.

    seen = W2 gelu(W1 z + b1) + b2        e' = GRU(seen, e)        e = 0 before the first tick

The name is that of the description of CTM-controlled diffusion; what it names is a learned code and no more. Activity
is not normalised first: how strong it is would be lost, and that tells most. A gated recurrent unit (arXiv 1406.1078)
moves each number part of the way to one in [-1, 1], so a state never leaves that range.
"""

# Shapes: B rows, T ticks, D neurons, E emotions, H hidden.

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class EmotionConfig:
    """Sizes of an emotion space and of the way into it."""

    width: int
    """[D] Neurons of the agent."""

    emotions: int = 8
    """[E] Numbers in an emotion state."""

    hidden: int = 32
    """[H] Between the two."""

    def __post_init__(self) -> None:
        for name in ("width", "emotions", "hidden"):
            check_count(f"emotion.{name}", getattr(self, name))


class EmotionStateTracker(nn.Module):
    """One tick of an emotion state; the same weights serve for oneself and for others, so that states compare."""

    def __init__(self, config: EmotionConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Sequential(
            nn.Linear(config.width, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.emotions)
        )
        self.cell = nn.GRUCell(config.emotions, config.emotions)

    def start(self, rows: int) -> Tensor:
        """The state before anything was seen, [B, E]."""
        return self.cell.weight_hh.new_zeros(rows, self.config.emotions)

    def forward(self, post_BD: Tensor, emotion_BE: Tensor) -> Tensor:
        """The next state, [B, E] in [-1, 1].

        Args:
            post_BD: the agent's post-activations, unbounded.
            emotion_BE: its state before this tick.
        """
        return self._turn(self.project(post_BD), emotion_BE)

    def follow(self, post_BTD: Tensor) -> Tensor:
        """The states after each tick of an activity seen from its beginning, [B, T, E]."""
        emotion_BE, states = self.start(post_BTD.shape[0]), []
        for seen_BE in self.project(post_BTD).unbind(1):
            emotion_BE = self._turn(seen_BE, emotion_BE)
            states.append(emotion_BE)
        return torch.stack(states, dim=1)

    def _turn(self, seen_BE: Tensor, emotion_BE: Tensor) -> Tensor:
        turned: Tensor = self.cell(seen_BE, emotion_BE)
        return turned


def check_count(name: str, value: object) -> None:
    """Raise ValueError unless the value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
