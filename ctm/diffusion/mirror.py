"""Mirror neurons: feel what another feels, guess what it wants, and lean towards helping it.

    empathy    = 1 - mean |e_self - e_other| / 2                          both states by one tracker; 1 when they agree
    assistance = softplus(w [e_other, empathy] + b) V g                   how much, and of what, by the believed goal g
    own state' = own state + s tanh(W [assistance, e_other - e_self])
    reward     = max(0, cos(action, assistance)) max(0, progress)         for acting as one would help, and helping

Progress is how much nearer the other's goal came, which only the world (or a loss) can tell. Source: the description of
CTM-controlled diffusion says what goes in and out; the formulas are ours.
"""

# Shapes: B rows (... rows, or rows and ticks), D neurons, E emotions, K context, H hidden of the goal, G goals,
# A numbers of an action.

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.diffusion.emotion import EmotionConfig, EmotionStateTracker, check_count
from ctm.diffusion.goal import GoalConfig, GoalPredictor


@dataclass(frozen=True, kw_only=True, slots=True)
class MirrorConfig:
    """How another is understood, and what follows from it."""

    emotion: EmotionConfig
    goal: GoalConfig

    actions: int
    """[A] Numbers of an action, and of the assistance that it is compared with."""

    strength: float = 0.5
    """[s] Most that a neuron's state is moved by."""

    heeds_emotion: bool = True
    """False: emotions are followed, and have no influence."""

    heeds_goal: bool = True
    """False: goals are predicted, and have no influence."""

    def __post_init__(self) -> None:
        check_count("mirror.actions", self.actions)
        if not 0 < self.strength < float("inf"):
            raise ValueError(f"mirror.strength must be positive and finite, got {self.strength!r}")
        if self.emotion.width != self.goal.width:
            raise ValueError(
                f"mirror needs emotion and goal of one width, got {self.emotion.width} and {self.goal.width}"
            )


class Minds(NamedTuple):
    """What is carried from tick to tick."""

    own_emotion: Tensor
    """[B, E]"""
    other_emotion: Tensor
    """[B, E]"""
    goal: Tensor
    """[B, H]"""


class Response(NamedTuple):
    """What follows from what is understood of another."""

    empathy: Tensor
    """[...] in [0, 1]."""
    assistance: Tensor
    """[..., A] what would help."""
    state: Tensor
    """[..., D] the own state, modulated."""


class Mirrored(NamedTuple):
    """What one tick of watching another comes to."""

    minds: Minds
    goal: Tensor
    """[B, G] prediction of the other's goal: logits, or a point."""
    response: Response


class MirrorNeuronLayer(nn.Module):
    """One tick of watching another."""

    def __init__(self, config: MirrorConfig) -> None:
        super().__init__()
        self.config = config
        emotions = config.emotion.emotions
        self.emotion = EmotionStateTracker(config.emotion)
        self.goal = GoalPredictor(config.goal)
        self.amount = nn.Linear(emotions + 1, 1)
        self.direction = nn.Linear(config.goal.goals, config.actions, bias=False)
        self.lean = nn.Linear(config.actions + emotions, config.emotion.width)

    def start(self, rows: int) -> Minds:
        """Before anyone was watched."""
        return Minds(self.emotion.start(rows), self.emotion.start(rows), self.goal.start(rows))

    def forward(self, own_BD: Tensor, observed_BD: Tensor, context_BK: Tensor, minds: Minds) -> Mirrored:
        """See both agents' states, and the other's context, for one tick more."""
        own_BE, other_BE = self.emotion(own_BD, minds.own_emotion), self.emotion(observed_BD, minds.other_emotion)
        guess = self.goal(observed_BD, context_BK, minds.goal)
        response = self.respond(own_BD, own_BE, other_BE, guess.prediction)
        return Mirrored(Minds(own_BE, other_BE, guess.hidden), guess.prediction, response)

    def respond(self, own: Tensor, own_emotion: Tensor, other_emotion: Tensor, goal: Tensor) -> Response:
        """What to make of states [..., D], emotions [..., E] and a predicted goal [..., G]; nothing is carried here."""
        # What would be rewarding must not colour what is believed.
        goal = goal.detach()
        believed = self.goal.believed(goal) if self.config.heeds_goal else self.goal.unknown(goal)
        agreement = empathy(own_emotion, other_emotion)
        felt = torch.cat([other_emotion, agreement.unsqueeze(-1)], dim=-1)
        difference = other_emotion - own_emotion
        if not self.config.heeds_emotion:
            felt, difference = torch.zeros_like(felt), torch.zeros_like(difference)
        assistance = F.softplus(self.amount(felt)) * self.direction(believed)
        leaning = self.lean(torch.cat([assistance, difference], dim=-1)).tanh()
        return Response(agreement, assistance, own + self.config.strength * leaning)


def empathy(own: Tensor, other: Tensor) -> Tensor:
    """How nearly two emotion states, [..., E], agree, [...] in [0, 1]; the same whoever is asked."""
    return 1 - (own - other).abs().mean(-1) / 2


def selfless_reward(action: Tensor, assistance: Tensor, progress: Tensor) -> Tensor:
    """What an action that helps another is worth, [...]; nothing where it does not, and never less than nothing.

    Args:
        action, assistance: [..., A].
        progress: [...] how much nearer the other's goal came by the action: 1 all the way, below 0 further away.
    """
    agreement = F.cosine_similarity(action.float(), assistance.float(), dim=-1)
    return agreement.clamp(min=0) * progress.float().clamp(min=0)


def selfless_loss(reward: Tensor) -> Tensor:
    """Mean of 1 - reward: 0 where every action helps all the way; a scalar."""
    return 1 - reward.mean()
