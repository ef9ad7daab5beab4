"""What thinks about a noisy image: tokens in, and at every tick a prediction, a certainty and a state that guides.

    tokens ── context ──> keys, values ── ticks ──> bins of x_0, certainty, state = [out sync, post-activations]

Where other thoughts are watched, traces are part of the state as well, after the post-activations.

The denoiser, training and the program know no other side of a thought, so that cores can be exchanged.
"""

# Shapes: N rows, T ticks, L tokens, E width of a token, C answer = X positions * K bins, O out pairs, D neurons,
# M memory, h heads, S state.

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm import program
from ctm.attention import Context, MaskedContext
from ctm.config import CTMConfig
from ctm.diffusion.recompute import computed
from ctm.diffusion.thinker_program import PlainTick
from ctm.losses import parity_loss
from ctm.model import CTM
from ctm.program import TensorSpec


class Moment(NamedTuple):
    """One tick of every row."""

    prediction: Tensor
    """[N, C] logits over bins."""
    certainty: Tensor
    """[N]"""
    state: Tensor
    """[N, S] what guides the denoiser, or is watched by other thoughts."""
    done: Tensor | None = None
    """[N] how likely the row ends here if it has not before; 0 or 1 but in training. None: it cannot end by itself."""


class Musings(NamedTuple):
    """What thoughts about noisy images led to, tick by tick."""

    predictions: Tensor
    """[N, T, C] logits over bins."""
    certainties: Tensor
    """[N, T]"""
    states: Tensor
    """[N, T, S]"""
    done: Tensor | None = None
    """[N, T], as of one tick; None where rows cannot end by themselves."""


class BinsLoss(NamedTuple):
    """The thought's own loss."""

    value: Tensor
    tick: Tensor
    """[N] the most certain one, from 0."""


def bins_error(predictions_NTC: Tensor, bins_NX: Tensor) -> Tensor:
    """The cross-entropy of the bins of X positions, their mean, at each tick, [N, T]."""
    logits_NTXK = torch.unflatten(predictions_NTC, -1, (bins_NX.shape[-1], -1))
    wanted_NTX = bins_NX[:, None].expand(logits_NTXK.shape[:-1])
    error = F.cross_entropy(logits_NTXK.flatten(0, -2), wanted_NTX.flatten(), reduction="none")
    return error.view(wanted_NTX.shape).mean(-1)


class Thinker(nn.Module, ABC):
    """A core that thinks about tokens."""

    core: CTM
    """Which looks at the tokens; in a core of several parts it is one of them."""

    recomputes = False
    """Whether ticks are computed again for the backward pass, for memory's sake."""

    traces = False
    """Whether they are part of the state."""

    @property
    def config(self) -> CTMConfig:
        return self.core.config

    @property
    def state_description(self) -> str:
        return "out sync, activations, traces" if self.traces else "out sync, activations"

    @property
    def state_width(self) -> int:
        """[S]"""
        config = self.config
        return config.out_pairs + config.width * (1 + config.memory * self.traces)

    def context(self, tokens_NLE: Tensor, hidden_NL: Tensor | None) -> Context | MaskedContext:
        """What is attended to; true in `hidden_NL` where a row has no token."""
        context = self.core.attention.context(self.core.embed(tokens_NLE.transpose(1, 2)))
        return context if hidden_NL is None else MaskedContext(*context, hidden_NL.unsqueeze(1))

    def think(self, context: Context | MaskedContext, rows: int) -> Musings:
        """All ticks of all rows."""
        moments = list(self.ticks(context, rows))
        done = [moment.done for moment in moments if moment.done is not None]
        return Musings(
            predictions=torch.stack([moment.prediction for moment in moments], dim=1),
            certainties=torch.stack([moment.certainty for moment in moments], dim=1),
            states=torch.stack([moment.state for moment in moments], dim=1),
            done=torch.stack(done, dim=1) if done else None,
        )

    @abstractmethod
    def ticks(self, context: Context | MaskedContext, rows: int) -> Iterator[Moment]:
        """One tick after the other, `config.ticks` of them."""

    def posts(self, thought: Musings) -> Tensor:
        """The post-activations of each tick, [N, T, D]."""
        first = self.config.out_pairs
        return thought.states[..., first : first + self.config.width]

    def judge(self, thought: Musings, bins_NX: Tensor) -> BinsLoss:
        """The cross-entropy of the bins of X positions: by the best and the most certain tick, the paper's loss."""
        loss = parity_loss(thought.predictions, thought.certainties, bins_NX)
        return BinsLoss(loss.value, loss.tick)

    @abstractmethod
    def state_specs(self) -> tuple[TensorSpec, ...]:
        """What a thought carries from tick to tick, as a program."""

    @abstractmethod
    def start_values(self) -> dict[str, Tensor]:
        """The start value of every state tensor by its name, without the row dimension."""

    def output_specs(self, tokens: int) -> tuple[TensorSpec, ...]:
        """What a tick of the program gives beside the next state."""
        config = self.config
        return (
            TensorSpec(
                name="prediction", shape=config.answer_shape, role="prediction", description="logits over bins of x_0"
            ),
            TensorSpec(name="certainty", shape=(), role="certainty", description="1 - normalised entropy"),
            TensorSpec(name="guide", shape=(self.state_width,), description=self.state_description),
            TensorSpec(
                name="attention",
                shape=(config.heads, tokens),
                role="detail",
                description="weights over tokens, by head",
            ),
        )

    @abstractmethod
    def frozen(self, tick_cap: int, *, convolve: bool) -> nn.Module:
        """The program's tick: keys, values, mask and state to the next state and `output_specs`."""

    def project_decays(self) -> None:
        """Move decays back to where they mean something; after every update."""
        self.core.project_decays()


class PlainThinker(Thinker):
    """A CTM."""

    def __init__(self, core: CTM) -> None:
        super().__init__()
        self.core = core

    def ticks(self, context: Context | MaskedContext, rows: int) -> Iterator[Moment]:
        core, state = self.core, self.core.start(rows)
        for root_beta_action, root_beta_out in islice(core.root_betas(), core.config.ticks):
            state, output = computed(core.tick, self.recomputes, context, state, root_beta_action, root_beta_out)
            traces = [state.trace.flatten(1)] if self.traces else []
            yield Moment(output.prediction, output.certainty, torch.cat([output.sync_out, state.post, *traces], dim=-1))

    def state_specs(self) -> tuple[TensorSpec, ...]:
        return program.specify_state(self.config)

    def start_values(self) -> dict[str, Tensor]:
        return program.start_values(self.core)

    def frozen(self, tick_cap: int, *, convolve: bool) -> nn.Module:
        return PlainTick(self.core, tick_cap, convolve=convolve, traces=self.traces)
