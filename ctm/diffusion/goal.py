"""What an observed agent is after: a prediction of its goal that grows with every tick it is watched.

    seen = W2 gelu(W1 [z, c] + b1) + b2        h' = GRU(seen, h)        prediction = W h' + b

z is the agent's activity, c its context. W and b begin at zero: a predictor that has learned nothing finds every goal
equally likely. Source: the description of CTM-controlled diffusion; the unit is that of arXiv 1406.1078.
"""

# Shapes: B rows, T ticks, D neurons, K context, H hidden, G goals (or numbers of a goal vector).

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.diffusion.emotion import check_count

GoalKind = Literal["classes", "vector"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GoalConfig:
    """What a goal is, and what it is predicted from."""

    width: int
    """[D] Neurons of the observed agent."""

    context: int
    """[K] Numbers that say where it stands."""

    goals: int
    """[G] Goals to choose from, at least 2; of a vector, its length."""

    kind: GoalKind = "classes"
    """`classes`: a distribution over goals. `vector`: a point."""

    hidden: int = 32
    """[H] Numbers that are carried from tick to tick."""

    def __post_init__(self) -> None:
        for name in ("width", "context", "goals", "hidden"):
            check_count(f"goal.{name}", getattr(self, name))
        if self.kind not in get_args(GoalKind):
            raise ValueError(f"goal.kind must be one of {get_args(GoalKind)}, got {self.kind!r}")
        if self.kind == "classes" and self.goals < 2:
            raise ValueError(f"goal.goals must be at least 2 to choose from, got {self.goals}")


class Guess(NamedTuple):
    """What is thought of another's goal after a tick."""

    hidden: Tensor
    """[B, H] to be carried to the next tick."""
    prediction: Tensor
    """[B, G] logits, or a point."""


class GoalPredictor(nn.Module):
    """One tick of watching."""

    def __init__(self, config: GoalConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Sequential(
            nn.Linear(config.width + config.context, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.hidden)
        )
        self.cell = nn.GRUCell(config.hidden, config.hidden)
        self.read = nn.Linear(config.hidden, config.goals)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)

    def start(self, rows: int) -> Tensor:
        """Before anything was seen, [B, H]."""
        return self.cell.weight_hh.new_zeros(rows, self.config.hidden)

    def forward(self, post_BD: Tensor, context_BK: Tensor, hidden_BH: Tensor) -> Guess:
        """Guess again, having seen one tick more.

        Args:
            post_BD: post-activations of the observed agent, unbounded.
            context_BK: where it stands, or how it just moved; a constant where there is nothing to say.
        """
        hidden_BH = self.cell(self.project(torch.cat([post_BD, context_BK], dim=-1)), hidden_BH)
        return Guess(hidden_BH, self.read(hidden_BH))

    def follow(self, post_BTD: Tensor, context_BTK: Tensor) -> Tensor:
        """The predictions after each tick of watching from the beginning, [B, T, G]."""
        hidden_BH, states = self.start(post_BTD.shape[0]), []
        for seen_BH in self.project(torch.cat([post_BTD, context_BTK], dim=-1)).unbind(1):
            hidden_BH = self.cell(seen_BH, hidden_BH)
            states.append(hidden_BH)
        predictions: Tensor = self.read(torch.stack(states, dim=1))
        return predictions

    def believed(self, prediction: Tensor) -> Tensor:
        """The goal as others may use it, [..., G]: probabilities, or the point itself."""
        return prediction.softmax(-1) if self.config.kind == "classes" else prediction

    def unknown(self, prediction: Tensor) -> Tensor:
        """What `believed` says where nothing was seen, [..., G]: each goal alike, or the origin."""
        return self.believed(torch.zeros_like(prediction))


def goal_loss(prediction: Tensor, goal: Tensor, kind: GoalKind) -> Tensor:
    """How wrong guesses are: cross-entropy, or the mean squared distance in each direction; a scalar.

    Args:
        prediction: [B, G], or [B, T, G] where every tick is to guess as well as it can.
        goal: int64 [B] for classes, [B, G] for a vector; it is the same at all ticks.
    """
    prediction_BTG = (prediction.unsqueeze(1) if prediction.dim() == 2 else prediction).float()
    ticks = prediction_BTG.shape[1]
    if kind == "classes":
        return F.cross_entropy(prediction_BTG.flatten(0, 1), goal.repeat_interleave(ticks))
    return F.mse_loss(prediction_BTG, goal.unsqueeze(1).expand_as(prediction_BTG).to(prediction_BTG.dtype))
