"""Consciousness: how awake each thought is, a level in [0, 1] that rises with surprise and falls with certainty.

    uncertainty = 1 - certainty
    surprise    = ‖now - before‖² / 2 (‖now‖² + ‖before‖²), of what came in, in [0, 1]
    arousal     = sigmoid(sharpness (uncertainty + gain · surprise - threshold))
    level'      = level + wake · max(arousal - level, 0) - sleep · max(level - arousal, 0)
    coupling    : what attention found is multiplied by the level before the synapse model sees it

Wake and sleep are in (0, 1), so the level never leaves [0, 1]: it moves a share of the way to the arousal. It wakes
faster than it falls asleep. Surprise is measured on what comes in, not on what a sleeping thought makes of it, or
nothing could wake it. All five settings are learned; nothing is drawn. No published source: the equations are ours,
of a leaky integrator with two rates.
"""

# Shapes: B rows, I width of what attention found.

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SMALL = 1e-12
"""Nothing against nothing is no surprise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsciousnessConfig:
    """Where the controller's settings begin."""

    wake: float = 0.5
    """Share of the way up that is taken at a tick."""
    sleep: float = 0.1
    """Share of the way down."""
    threshold: float = 0.5
    """Uncertainty and surprise that leave it half awake."""
    sharpness: float = 10.0
    """How sudden awakening is."""
    gain: float = 2.0
    """How much surprise counts against uncertainty."""
    start: float = 1.0
    """Level before the first tick."""

    def __post_init__(self) -> None:
        for name in ("wake", "sleep"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"consciousness.{name} must be in (0, 1), got {getattr(self, name)!r}")
        for name in ("threshold", "sharpness", "gain"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"consciousness.{name} must be positive and finite, got {getattr(self, name)!r}")
        if not 0 <= self.start <= 1:
            raise ValueError(f"consciousness.start must be in [0, 1], got {self.start!r}")


class ConsciousnessController(nn.Module):
    """Carries the level of every thought from one tick to the next."""

    start: Tensor

    def __init__(self, config: ConsciousnessConfig) -> None:
        super().__init__()
        self.wake, self.sleep = (
            nn.Parameter(torch.tensor(math.log(rate / (1 - rate)))) for rate in (config.wake, config.sleep)
        )
        self.threshold = nn.Parameter(torch.tensor(config.threshold))
        self.sharpness, self.gain = (
            nn.Parameter(torch.tensor(math.log(value))) for value in (config.sharpness, config.gain)
        )
        self.register_buffer("start", torch.tensor(config.start))

    def begin(self, rows: int) -> Tensor:
        """The level before the first tick, [B]."""
        return self.start.expand(rows)

    def forward(self, level_B: Tensor, certainty_B: Tensor, surprise_B: Tensor) -> Tensor:
        """The level at the next tick, [B].

        Args:
            certainty_B: of the prediction at this tick; taken as in [0, 1].
            surprise_B: see `surprise`; 0 where nothing new came in.
        """
        drive_B = 1 - certainty_B.clamp(0.0, 1.0) + self.gain.exp() * surprise_B
        arousal_B = (self.sharpness.exp() * (drive_B - self.threshold)).sigmoid()
        up_B = self.wake.sigmoid() * (arousal_B - level_B).clamp(min=0.0)
        down_B = self.sleep.sigmoid() * (level_B - arousal_B).clamp(min=0.0)
        return level_B + up_B - down_B


def surprise(now: Tensor, before: Tensor) -> Tensor:
    """How much what comes in, [B, ...], differs from what came before: 0 for the same, 0.5 for what has nothing in
    common with it, 1 for its opposite; [B].
    """
    now, before = now.flatten(1), before.flatten(1)
    both_B = now.square().sum(-1) + before.square().sum(-1)
    return (now - before).square().sum(-1) / (2 * both_B).clamp(min=_SMALL)


def attentive(found_BI: Tensor, level_B: Tensor) -> Tensor:
    """What a thought of this level takes in of what its attention found, [B, I]: all of it awake, nothing at level 0.

    The state goes on by itself meanwhile: with its own post-activations a sleeping thought still thinks.
    """
    return found_BI * level_B.unsqueeze(-1)
