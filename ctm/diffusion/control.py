"""What happens to a thought's state on its way to the denoiser: what may move it, what may gate it, and to what end.

    state = [out sync, post-activations, traces if another thought is watched]
    post-activations ── others in mind ──> moved ──────────────┐
    out sync ── basal ganglia, by post-activations and level ──┴──> what guides, [out sync, post-activations]

What is learned by reward is judged by what came of guiding, so its losses can be told only then.
"""

# Shapes: N rows, R = O + D + D M of a thinker's state, S = O + D of what guides, O out pairs, D neurons, M memory.

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctm.config import CTMConfig
from ctm.diffusion.basal_ganglia import BasalGanglia, Gated, dopamine, gate_loss, let_through, value_loss
from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.goal import goal_loss
from ctm.diffusion.level import level_code
from ctm.diffusion.mirror import selfless_loss, selfless_reward
from ctm.diffusion.others_in_mind import Mind, OthersInMind, Understood, unpacked
from ctm.diffusion.senses import Fed
from ctm.diffusion.synaptic_empathy import empathy_loss

OTHER = "other"
"""What is handed on of a thought to the next one, by this name."""
_NOTHING = 1e-6
"""An error that leaves nothing to be helped with."""


class Controlled(NamedTuple):
    """A state as the denoiser may see it."""

    state: Tensor
    """[N, S]"""
    gated: Gated | None = None
    passed: Tensor | None = None
    """[N, O] 0 or 1: the channels that were let through while learning."""
    understood: Understood | None = None


class Outcome(NamedTuple):
    """What came of guiding rows."""

    label: Tensor
    """[N] what was asked for."""
    guided: Tensor
    """[N] truth: whether the row was guided at all."""
    error: Tensor
    """[N] mean squared error of the prediction."""
    base_error: Tensor | None = None
    """[N] of the prediction without a thought, where a reward asks for it."""
    clean: Tensor | None = None
    """[N, S, S] the image, and what the row and the other took for it, where a reward asks for them."""
    estimate: Tensor | None = None
    other_estimate: Tensor | None = None


class Control(nn.Module):
    """From the state of the tick that answers to what guides; the identity unless something is switched on."""

    def __init__(self, config: DiffusionConfig, core: CTMConfig) -> None:
        """Weights are drawn from torch's generator."""
        super().__init__()
        self.config, self.channels, self.neurons, self.memory = config, core.out_pairs, core.width, core.memory
        self.others = OthersInMind(config, core.width) if config.watches else None
        self.ganglia = None
        if config.basal_ganglia is not None:
            # The context: a level's code, and how certain the thought is.
            self.ganglia = BasalGanglia(core.width, config.width + 1, core.out_pairs, config.basal_ganglia)

    @property
    def learns(self) -> bool:
        """Whether there are losses of its own."""
        return self.others is not None or self.ganglia is not None

    @property
    def state_width(self) -> int:
        """[S]"""
        return self.channels + self.neurons

    @property
    def fed(self) -> dict[str, tuple[int, ...]]:
        """What a thought hands on to the next, by name, with the shapes of one row."""
        return {OTHER: (self.neurons, self.memory + 1)} if self.others is not None else {}

    def hand_on(self, state_NR: Tensor) -> dict[str, Tensor]:
        """What `fed` names, of the state of the tick that answered."""
        return {OTHER: self._mind(state_NR).packed()} if self.others is not None else {}

    def forward(self, state_NR: Tensor, certainty_N: Tensor, level_N: Tensor, fed: Fed) -> Controlled:
        """Take one tick's state, how certain it is, how noisy the image, and what was handed on.

        While training, whole channels are let through or held, by chance; otherwise each is as strong as its gate.
        """
        if not self.learns:
            return Controlled(state_NR)
        sync_NO, post_ND = state_NR[:, : self.channels], self._post(state_NR)
        code_NE, understood, gated, passed_NO = level_code(level_N, self.config.width), None, None, None
        if self.others is not None:
            post_ND, understood = self.others(self._mind(state_NR), unpacked(fed[OTHER]), code_NE)
        if self.ganglia is not None:
            # A thought is not to be bent to what a gate likes to hear.
            context = torch.cat([code_NE, certainty_N.detach().unsqueeze(-1)], dim=-1)
            gated = self.ganglia(post_ND.detach(), context, sync_NO)
            passed_NO = let_through(gated.gate, torch.rand_like(sync_NO)) if self.training else None
            sync_NO = gated.action if passed_NO is None else sync_NO * passed_NO
        return Controlled(torch.cat([sync_NO, post_ND], dim=-1), gated, passed_NO, understood)

    def losses(self, controlled: Controlled, outcome: Outcome) -> Mapping[str, Tensor]:
        """Scalars that training descends as well, by the name of their weight."""
        losses: dict[str, Tensor] = {}
        if controlled.gated is not None and controlled.passed is not None:
            losses |= self._gate_losses(controlled.gated, controlled.passed, outcome)
        if (understood := controlled.understood) is not None:
            losses |= _understanding_losses(understood, outcome)
        return losses

    def _gate_losses(self, gated: Gated, passed_NO: Tensor, outcome: Outcome) -> dict[str, Tensor]:
        assert outcome.base_error is not None, "the reward is what guiding gains"
        reward_N = (outcome.base_error - outcome.error).detach()
        surprise_N = dopamine(reward_N, gated.reward)
        # Rows without a thought have nothing to gate.
        rows = outcome.guided
        return {
            "value": _over(rows, value_loss, reward_N, gated.reward),
            "gate": _over(rows, gate_loss, gated.gate, passed_NO, surprise_N),
        }

    def _post(self, state_NR: Tensor) -> Tensor:
        return state_NR[:, self.channels : self.channels + self.neurons]

    def _mind(self, state_NR: Tensor) -> Mind:
        trace = torch.unflatten(state_NR[:, self.state_width :], -1, (self.neurons, self.memory))
        return Mind(trace, self._post(state_NR))


def _understanding_losses(understood: Understood, outcome: Outcome) -> dict[str, Tensor]:
    """Of the rows that had another to understand."""
    there, losses = understood.there, {}
    if understood.resonance is not None:
        losses["empathy"] = _over(there, empathy_loss, understood.resonance)
    if understood.goals:
        losses["goal"] = torch.stack(
            [
                _over(there, lambda guess_NMG, label_N: goal_loss(guess_NMG, label_N, "classes"), guess, outcome.label)
                for guess in understood.goals
            ]
        ).mean()
    if understood.assistance is not None:
        losses["selfless"] = _over(there & outcome.guided, _unselfishness, understood.assistance, *_images(outcome))
    return losses


def _unselfishness(assistance_NA: Tensor, clean_NA: Tensor, own_NA: Tensor, other_NA: Tensor) -> Tensor:
    """An action is what a row changes of the other's estimate; its progress, how much of the other's error it ends."""
    left_N, was_N = ((clean_NA - estimate).square().mean(-1) for estimate in (own_NA, other_NA))
    progress_N = 1 - left_N / was_N.clamp(min=_NOTHING)
    return selfless_loss(selfless_reward(own_NA - other_NA, assistance_NA, progress_N))


def _images(outcome: Outcome) -> tuple[Tensor, Tensor, Tensor]:
    assert outcome.clean is not None, "progress is towards the clean image"
    assert outcome.estimate is not None, "progress is what the row makes of it"
    assert outcome.other_estimate is not None, "progress is beyond what the other makes of it"
    return outcome.clean.flatten(1), outcome.estimate.flatten(1), outcome.other_estimate.flatten(1)


def _over(rows_N: Tensor, loss: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """The loss of some rows; if there are none 0, of the same graph."""
    if rows_N.any():
        return loss(*(value[rows_N] for value in values))
    return torch.stack([value.sum() for value in values]).sum() * 0
