"""An agent that watches another one, tick by tick, and acts: all that others have in a mind, in one small model.

    x_t = drive_t + synaptic modulation(trace of x, trace of y)          y: the other's activity
    state', goal, emotions = mirror(x_t, y_t, move_t)          push_t = P state'
    loss = goal loss + empathy loss + selfless loss

Each of the three can be switched off, from the first update on.
"""

# Shapes: B rows, T ticks, D neurons, M memory, E emotions, G goals.

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.diffusion.emotion import EmotionConfig, check_count
from ctm.diffusion.goal import GoalConfig, goal_loss
from ctm.diffusion.mirror import MirrorConfig, MirrorNeuronLayer, selfless_loss, selfless_reward
from ctm.diffusion.synaptic_empathy import SynapticEmpathy, SynapticEmpathyConfig, empathy_loss, resonance
from ctm.diffusion.two_agents import Episodes, WorldConfig, meet, progress


@dataclass(frozen=True, kw_only=True, slots=True)
class CompanionConfig:
    """Sizes, and which signals there are."""

    world: WorldConfig = field(default_factory=WorldConfig)

    memory: int = 6
    """[M] Ticks that traces hold."""

    emotions: int = 4
    """[E]"""

    hidden: int = 24
    """Of emotion tracker and goal predictor."""

    pull: float = 0.8
    """Strength of the synaptic modulation."""

    goal: bool = True
    """Whether the other's goal is heeded."""

    emotion: bool = True
    """Whether emotions are heeded."""

    resonance: bool = True
    """Whether the own state is drawn to the other's, and rewarded for it."""

    selfless: bool = True
    """Whether helping is rewarded."""

    def __post_init__(self) -> None:
        check_count("companion.memory", self.memory)


class Watched(NamedTuple):
    """What went on while watching, tick by tick."""

    goal: Tensor
    """[B, T, G] logits."""
    own_emotion: Tensor
    """[B, T, E]"""
    other_emotion: Tensor
    """[B, T, E]"""
    empathy: Tensor
    """[B, T]"""
    resonance: Tensor
    """[B, T] the reward of synaptic empathy."""
    assistance: Tensor
    """[B, T, 2]"""
    push: Tensor
    """[B, T, 2] what it would do if it acted after this tick."""


class Companion(nn.Module):
    """The watching agent."""

    def __init__(self, config: CompanionConfig) -> None:
        super().__init__()
        self.config = config
        neurons, hidden = config.world.neurons, config.hidden
        self.synaptic = SynapticEmpathy(SynapticEmpathyConfig(width=neurons, strength=config.pull))
        self.mirror = MirrorNeuronLayer(
            MirrorConfig(
                emotion=EmotionConfig(width=neurons, emotions=config.emotions, hidden=hidden),
                goal=GoalConfig(width=neurons, context=2, goals=config.world.goals, hidden=hidden),
                actions=2,
                strength=1.0,
                heeds_emotion=config.emotion,
                heeds_goal=config.goal,
            )
        )
        self.push = nn.Linear(neurons, 2)

    def forward(self, episodes: Episodes) -> Watched:
        """Watch from beginning to end."""
        other_BTDM = self._traces(episodes.activity)
        own_BTD = self._drawn(episodes.drive, other_BTDM) if self.config.resonance else episodes.drive
        reward_BT = resonance(self._traces(own_BTD), other_BTDM, self.synaptic.config.measure).mean(-1)
        # Nothing of what follows comes back to the own state, so that it need not be done tick by tick.
        own_BTE, other_BTE = self.mirror.emotion.follow(torch.cat([own_BTD, episodes.activity])).chunk(2)
        goal_BTG = self.mirror.goal.follow(episodes.activity, episodes.moves)
        response = self.mirror.respond(own_BTD, own_BTE, other_BTE, goal_BTG)
        push_BT2 = self.push(response.state)
        return Watched(goal_BTG, own_BTE, other_BTE, response.empathy, reward_BT, response.assistance, push_BT2)

    def _traces(self, activity_BTD: Tensor) -> Tensor:
        """The traces after each tick, [B, T, D, M], of silence before the first."""
        return F.pad(activity_BTD, (0, 0, self.config.memory - 1, 0)).unfold(1, self.config.memory, 1)

    def _drawn(self, drive_BTD: Tensor, other_BTDM: Tensor) -> Tensor:
        """The own activity, [B, T, D], each tick of it drawn to the other's."""
        own_BDM, drawn = torch.zeros_like(other_BTDM[:, 0]), []
        for drive_BD, other_BDM in zip(drive_BTD.unbind(1), other_BTDM.unbind(1), strict=True):
            driven_BDM = torch.cat([own_BDM[..., 1:], drive_BD.unsqueeze(-1)], dim=-1)
            drawn.append(drive_BD + self.synaptic(driven_BDM, other_BDM).modulation)
            own_BDM = torch.cat([own_BDM[..., 1:], drawn[-1].unsqueeze(-1)], dim=-1)
        return torch.stack(drawn, dim=1)

    def loss(self, episodes: Episodes, watched: Watched) -> Tensor:
        """The sum of what is switched on, a scalar; goals are always learned, heeded or not."""
        loss = goal_loss(watched.goal, episodes.goal, "classes")
        if self.config.resonance:
            loss = loss + empathy_loss(watched.resonance)
        if self.config.selfless:
            nearer_BT = progress(self.config.world, episodes, watched.push)
            loss = loss + selfless_loss(selfless_reward(watched.push, watched.assistance, nearer_BT))
        return loss


def train_companion(
    config: CompanionConfig, *, seed: int, updates: int, rows: int = 256, learning_rate: float = 2e-2
) -> Companion:
    """A companion that has met `updates` times `rows` others, each of them once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Companion(config)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        episodes = meet(config.world, rows, generator)
        optimiser.zero_grad()
        loss = model.loss(episodes, model(episodes))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def lesioned(model: Companion, signal: str) -> Companion:
    """The same weights without one signal: `goal`, `emotion`, `resonance` or `selfless`."""
    with torch.random.fork_rng(devices=[]):
        without = Companion(replace(model.config, **{signal: False}))  # type: ignore[arg-type]  # all are truths
    without.load_state_dict(model.state_dict())
    return without.train(model.training)
