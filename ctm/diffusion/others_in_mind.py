"""Other thoughts in mind: what a thought makes of the one of the reverse step before, and how that moves it.

    post += s σ(o) (1 + r) / 2 (post of the other - post)      synaptic empathy: r, how alike their traces run
    post += W [e, e of the other - e]                          emotion: codes of both traces, e
    post += W (belief - 1 / classes)                           goal: which class the other was asked for
    post += s tanh(W [assistance, e of the other - e])         mirror neurons: what would help the other

The other has been handed on by the reverse step before: its traces, followed tick by tick, and its post-activations.
At the first step there is none (zeros): then nothing of it has an effect, and an emotion is one's own alone.
"""

# Shapes: N rows, D neurons, M memory, E emotions, G classes, K level's code, A pixels.

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.emotion import EmotionStateTracker
from ctm.diffusion.goal import GoalPredictor
from ctm.diffusion.mirror import MirrorNeuronLayer
from ctm.diffusion.synaptic_empathy import SynapticEmpathy


class Mind(NamedTuple):
    """What may be seen of a thought, own or other, at the tick that answers."""

    trace: Tensor
    """[N, D, M] pre-activations, newest last."""
    post: Tensor
    """[N, D] post-activations."""

    def packed(self) -> Tensor:
        """[N, D, M + 1], to be handed on."""
        return torch.cat([self.trace, self.post.unsqueeze(-1)], dim=-1)


def unpacked(packed: Tensor) -> Mind:
    """The inverse of `Mind.packed`."""
    return Mind(packed[..., :-1], packed[..., -1])


class Understood(NamedTuple):
    """What was made of another thought: what training judges."""

    there: Tensor
    """[N] truth: whether there was one."""
    resonance: Tensor | None
    """[N] the reward of synaptic empathy."""
    goals: tuple[Tensor, ...]
    """[N, M, G] logits after each tick that was watched, of everyone who guesses."""
    assistance: Tensor | None
    """[N, A] what would help, as a change of the image."""


class OthersInMind(nn.Module):
    """Moves post-activations by what is seen of another thought."""

    def __init__(self, config: DiffusionConfig, neurons: int) -> None:
        """Weights are drawn from torch's generator."""
        super().__init__()
        self.empathy = None if config.empathy is None else SynapticEmpathy(config.empathy)
        self.emotion, self.feel = None, None
        if config.emotion is not None:
            self.emotion = EmotionStateTracker(config.emotion)
            self.feel = nn.Linear(2 * config.emotion.emotions, neurons)
        self.goal, self.heed = None, None
        if config.goal is not None:
            self.goal = GoalPredictor(config.goal)
            self.heed = nn.Linear(config.goal.goals, neurons, bias=False)
        self.mirror = None if config.mirror is None else MirrorNeuronLayer(config.mirror)

    def forward(self, own: Mind, other: Mind, code_NK: Tensor) -> tuple[Tensor, Understood]:
        """The post-activations as they become, [N, D].

        Args:
            other: of zeros where there is none; no gradient reaches it.
            code_NK: of the own level of noise.
        """
        other = Mind(*(tensor.detach() for tensor in other))
        there_N1 = (other.post != 0).any(-1, keepdim=True).to(own.post)
        activity, seen = own.trace.transpose(1, 2), other.trace.transpose(1, 2)
        where = code_NK.unsqueeze(1).expand(-1, seen.shape[1], -1)
        post, resonance, goals, assistance = own.post, None, [], None
        if self.empathy is not None:
            felt = self.empathy(own.trace, other.trace)
            resonance = felt.reward
            post = post + there_N1 * self.empathy.share(felt.by_neuron) * (other.post - post)
        if self.emotion is not None and self.feel is not None:
            mine, theirs = (self.emotion.follow(trace)[:, -1] for trace in (activity, seen))
            post = post + self.feel(torch.cat([mine, there_N1 * (theirs - mine)], dim=-1))
        if self.goal is not None and self.heed is not None:
            goals.append(self.goal.follow(seen, where))
            # What would be convenient must not colour what is believed.
            guess = goals[-1][:, -1].detach()
            post = post + there_N1 * self.heed(self.goal.believed(guess) - self.goal.unknown(guess))
        if self.mirror is not None:
            mine, theirs = (self.mirror.emotion.follow(trace)[:, -1] for trace in (activity, seen))
            goals.append(self.mirror.goal.follow(seen, where))
            response = self.mirror.respond(post, mine, theirs, goals[-1][:, -1])
            assistance = response.assistance
            post = post + there_N1 * (response.state - post)
        return post, Understood(there_N1.squeeze(-1) > 0, resonance, tuple(goals), assistance)
