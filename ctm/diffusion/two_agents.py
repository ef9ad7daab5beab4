"""Two agents: one walks to a goal that it does not tell, calm or upset; the other watches and may give it one push.

    move_t = drift u_goal + noise               activity_t = gain tanh(A [move_t / noise, cos φ_t, sin φ_t]) + noise

Goals lie all around. The rhythm φ has its own beginning in each agent. An upset agent's activity is stronger, and it
stops further from its goal: a push that would bring a calm one there leaves it most of the way, and one that would help
it takes a calm one past its goal. The watching agent has a drive of the same kind, and business of its own.

Everything that a push needs is hidden: its direction in the moves, its size in the strength of the activity.
"""

# Shapes: B rows, T ticks, D neurons.

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ctm.diffusion.emotion import check_count


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """How hard the other is to read, and what it needs."""

    neurons: int = 24
    """[D] Of each agent."""

    ticks: int = 10
    """[T] For which the other is watched."""

    goals: int = 8
    """Directions, evenly around."""

    drift: float = 0.2
    """Of a move, towards the goal."""

    wander: float = 0.25
    """Standard deviation of a move in either coordinate, which hides the drift."""

    gains: tuple[float, float] = (0.6, 1.4)
    """Of the activity: calm, upset."""

    needs: tuple[float, float] = (0.5, 1.5)
    """How far from its goal the other stops: calm, upset."""

    period: float = 12.0
    """Ticks of the rhythm."""

    noise: float = 0.3
    """Standard deviation of what is added to each neuron's activity."""

    seed: int = 0
    """Of the wiring, which both agents share."""

    def __post_init__(self) -> None:
        for name in ("neurons", "ticks", "goals"):
            check_count(f"world.{name}", getattr(self, name))
        for name in ("drift", "wander", "period", "noise"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"world.{name} must be positive and finite, got {getattr(self, name)!r}")
        for name in ("gains", "needs"):
            calm, upset = getattr(self, name)
            if not 0 < calm < upset < math.inf:
                raise ValueError(f"world.{name} must be positive, the second larger, got {getattr(self, name)!r}")


class Episodes(NamedTuple):
    """Some meetings of two agents."""

    moves: Tensor
    """[B, T, 2] of the other, as anyone can see."""
    activity: Tensor
    """[B, T, D] of the other's neurons."""
    drive: Tensor
    """[B, T, D] what the own neurons would do if nobody else were there."""
    goal: Tensor
    """int64 [B], hidden."""
    upset: Tensor
    """int64 [B], 0 or 1, hidden."""
    own_upset: Tensor
    """int64 [B], 0 or 1."""


def meet(config: WorldConfig, rows: int, generator: torch.Generator) -> Episodes:
    """Draw meetings; all chance comes from the generator."""
    goal_B = torch.randint(config.goals, (rows,), generator=generator)
    own_goal_B = torch.randint(config.goals, (rows,), generator=generator)
    upset_B, own_upset_B = torch.randint(2, (2, rows), generator=generator)
    moves_BT2 = _walk(config, goal_B, generator)
    activity_BTD = _activity(config, moves_BT2, upset_B, generator)
    drive_BTD = _activity(config, _walk(config, own_goal_B, generator), own_upset_B, generator)
    return Episodes(moves_BT2, activity_BTD, drive_BTD, goal_B, upset_B, own_upset_B)


def directions(config: WorldConfig) -> Tensor:
    """The way to each goal, of length 1, [goals, 2]."""
    angle_G = torch.arange(config.goals) * (2 * math.pi / config.goals)
    return torch.stack([angle_G.cos(), angle_G.sin()], dim=-1)


def progress(config: WorldConfig, episodes: Episodes, push: Tensor) -> Tensor:
    """How much nearer a push of [B, 2] or [B, T, 2] brings the other to its goal, [B] or [B, T].

    1 is all the way, 0 no nearer; below 0 it is further away than before.
    """
    need_B1 = torch.tensor(config.needs)[episodes.upset].unsqueeze(-1)
    way = need_B1 * directions(config)[episodes.goal]
    if push.dim() == 3:
        way, need_B1 = way.unsqueeze(1), need_B1.unsqueeze(1)
    left: Tensor = torch.linalg.vector_norm(way - push, dim=-1)
    return 1 - left / need_B1.squeeze(-1)


def best_guess(config: WorldConfig, moves_BT2: Tensor) -> Tensor:
    """The likeliest goal after each tick, int64 [B, T]: nobody who sees these moves can be right more often.

    Noise is alike in all directions, so that the sum of the moves holds all there is to know.
    """
    return (moves_BT2.cumsum(1) @ directions(config).T).argmax(-1)


def _walk(config: WorldConfig, goal_B: Tensor, generator: torch.Generator) -> Tensor:
    noise_BT2 = torch.randn(len(goal_B), config.ticks, 2, generator=generator)
    return config.drift * directions(config)[goal_B].unsqueeze(1) + config.wander * noise_BT2


def _activity(config: WorldConfig, moves_BT2: Tensor, upset_B: Tensor, generator: torch.Generator) -> Tensor:
    wiring_4D = torch.randn(4, config.neurons, generator=torch.Generator().manual_seed(config.seed))
    begin_B1 = 2 * math.pi * torch.rand(len(moves_BT2), 1, generator=generator)
    phase_BT = begin_B1 + torch.arange(config.ticks) * (2 * math.pi / config.period)
    driven_BT4 = torch.cat([moves_BT2 / config.wander, torch.stack([phase_BT.cos(), phase_BT.sin()], dim=-1)], dim=-1)
    gain_B11 = torch.tensor(config.gains)[upset_B][:, None, None]
    noise_BTD = torch.randn(*phase_BT.shape, config.neurons, generator=generator)
    return gain_B11 * (driven_BT4 @ wiring_4D).tanh() + config.noise * noise_BTD
