"""Thinking back and forth about a noisy image: a controller moves every row, and ends it; see `bidirectional.py`.

In training moves are drawn, nobody ends, and every tick's loss counts with the probability of ending there:

    loss = mean over rows of sum_t P(end at t) error_t

Otherwise the likeliest move is made, and the thought of a row that says it is done ends.
"""

# Shapes: B, N rows, T ticks, C places in a history, X positions.

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ctm.attention import Context, MaskedContext
from ctm.certainty import most_certain
from ctm.diffusion import reasoning
from ctm.diffusion.bidirectional import Walk, ending_chances, gumbel_noise
from ctm.diffusion.reasoning import MoveOutput, ReasoningCTM
from ctm.diffusion.recompute import computed
from ctm.diffusion.root_betas import RootBetas
from ctm.diffusion.thinker import BinsLoss, Moment, Musings, Thinker, bins_error
from ctm.diffusion.thinker_program import masked
from ctm.model import CTM
from ctm.program import TensorSpec


class ReasoningThinker(Thinker):
    """Guides by the out sync and the post-activations of the state that a row is at, wherever it came from."""

    def __init__(self, model: ReasoningCTM) -> None:
        super().__init__()
        self.model = model

    @property
    def core(self) -> CTM:  # type: ignore[override]  # it belongs to the model, and has its one name there
        """What ticks when a row goes forward."""
        return self.model.core

    def ticks(self, context: Context | MaskedContext, rows: int) -> Iterator[Moment]:
        walk, tables = self.model.start(rows), self.model.tables()
        for _ in range(self.config.ticks):
            noise = gumbel_noise((rows, 3)).to(context.keys.device) if self.training else None
            walk, seen = computed(self.model.tick, self.recomputes, context, walk, tables, noise)
            done = seen.gate if self.training else seen.done
            yield Moment(seen.prediction, seen.certainty, _guide(seen), done)

    def judge(self, thought: Musings, bins_NX: Tensor) -> BinsLoss:
        """The loss of every tick, weighed with the probability of ending there, so that the gate learns too."""
        assert thought.done is not None, "the controller says when rows end"
        error_NT = bins_error(thought.predictions, bins_NX)
        value = (ending_chances(thought.done) * error_NT).sum(-1).mean()
        return BinsLoss(value, most_certain(thought.certainties))

    def state_specs(self) -> tuple[TensorSpec, ...]:
        return reasoning.specify_state(self.model)

    def start_values(self) -> dict[str, Tensor]:
        return reasoning.start_values(self.model)

    def output_specs(self, tokens: int) -> tuple[TensorSpec, ...]:
        return *super().output_specs(tokens), reasoning.DONE

    def frozen(self, tick_cap: int, *, convolve: bool) -> nn.Module:
        del tick_cap, convolve  # a row is done after its moves; the neurons are computed as the model computes them
        return ReasoningTick(self.model)


class ReasoningTick(nn.Module):
    """One move of rows that may each be anywhere in their thoughts."""

    action: Tensor
    out: Tensor

    def __init__(self, model: ReasoningCTM) -> None:
        super().__init__()
        self.model, self.answer_shape = model, model.core.config.answer_shape
        tables = model.frozen_tables()
        self.register_buffer("action", tables.action)
        self.register_buffer("out", tables.out)

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        past_trace: Tensor,
        past_post: Tensor,
        past_action_sum: Tensor,
        past_out_sum: Tensor,
        past_ticks_done: Tensor,
        at: Tensor,
        behind: Tensor,
        turned: Tensor,
        ticks_done: Tensor,
        ended: Tensor,
        memory: Tensor,
    ) -> tuple[Tensor, ...]:
        """Context and state; next state, outputs."""
        past = (past_trace, past_post, past_action_sum, past_out_sum, past_ticks_done)
        walk = Walk(past, at, behind, turned, ticks_done, ended, memory)
        walk, seen = self.model.tick(masked(keys, values, mask), walk, RootBetas(self.action, self.out))
        prediction = torch.unflatten(seen.prediction, -1, self.answer_shape)
        return *reasoning.flatten(walk), prediction, seen.certainty, _guide(seen), seen.attention, seen.done


def _guide(seen: MoveOutput) -> Tensor:
    return torch.cat([seen.sync_out, seen.post], dim=-1)
