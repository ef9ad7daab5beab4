"""Thinking more or less awake about a noisy image: a level scales what attention finds; see `consciousness.py`.

    found ── times the level ──> synapse model ──> … ──> prediction, certainty ─┐
      └── surprise: how it differs from what was found before ─────────────────┴──> the next level

The first look of a thought is new to it: before it, nothing was found.
"""

# Shapes: B rows, I attention width, A / O action / out pairs.

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm import program
from ctm.attention import Context, MaskedContext
from ctm.certainty import certainty
from ctm.diffusion.consciousness import ConsciousnessConfig, ConsciousnessController, attentive, surprise
from ctm.diffusion.recompute import computed
from ctm.diffusion.thinker import Moment, Thinker
from ctm.diffusion.thinker_program import masked
from ctm.model import CTM, RootBeta, State
from ctm.program import TensorSpec


class Awareness(NamedTuple):
    """What a thought carries from tick to tick besides its core's state."""

    level: Tensor
    """[B] how awake it is."""
    found: Tensor
    """[B, I] what attention found at the last tick, before the level scaled it; zeros before the first."""


class ConsciousThinker(Thinker):
    """A CTM that takes in as much of what it finds as it is awake."""

    def __init__(self, core: CTM, config: ConsciousnessConfig) -> None:
        super().__init__()
        self.core = core
        self.consciousness = ConsciousnessController(config)

    def start(self, rows: int) -> tuple[State, Awareness]:
        """Before the first tick."""
        state = self.core.start(rows)
        found = state.post.new_zeros(rows, self.config.attention_width)
        return state, Awareness(self.consciousness.begin(rows), found)

    def ticks(self, context: Context | MaskedContext, rows: int) -> Iterator[Moment]:
        state, awareness = self.start(rows)
        for root_beta in islice(self.core.root_betas(), self.config.ticks):
            state, awareness, moment, _ = computed(self.tick, self.recomputes, context, state, awareness, root_beta)
            yield moment

    def tick(
        self, context: Context | MaskedContext, state: State, awareness: Awareness, root_beta: RootBeta
    ) -> tuple[State, Awareness, Moment, Tensor]:
        """One tick, a pure function: the next state, what it thinks, and attention's weights."""
        core, kind = self.core, state.post.dtype
        found, attention = core.attention(core.query(state.action_sum / root_beta.action), context)
        found = found.to(kind)
        state, _ = core.take_in(attentive(found, awareness.level), state)
        sync_out = state.out_sum / root_beta.out
        prediction = core.readout(sync_out).to(kind)
        sure = certainty(prediction, self.config.answer_shape)
        # The level goes by how sure a thought is; it is not what makes it say so.
        level = self.consciousness(awareness.level, sure.detach(), surprise(found, awareness.found))
        moment = Moment(prediction, sure, torch.cat([sync_out, state.post], dim=-1))
        return state, Awareness(level, found), moment, attention

    def state_specs(self) -> tuple[TensorSpec, ...]:
        return (
            *program.specify_state(self.config),
            TensorSpec(name="level", shape=(), description="how awake the thought is"),
            TensorSpec(
                name="found", shape=(self.config.attention_width,), description="by attention, at the last tick"
            ),
        )

    @torch.no_grad()
    def start_values(self) -> dict[str, Tensor]:
        state, awareness = self.start(1)
        packed = *program.pack_state(state, torch.zeros(1, dtype=torch.int64)), *awareness
        return {spec.name: value[0].clone() for spec, value in zip(self.state_specs(), packed, strict=True)}

    def frozen(self, tick_cap: int, *, convolve: bool) -> nn.Module:
        del convolve  # the neurons are computed as the model computes them
        return ConsciousTick(self, tick_cap)


class ConsciousTick(nn.Module):
    """One tick of rows that may be at different ticks."""

    action: Tensor
    out: Tensor

    def __init__(self, thinker: ConsciousThinker, tick_cap: int) -> None:
        """`tick_cap` is the most ticks a row may run."""
        super().__init__()
        if tick_cap < 1:
            raise ValueError(f"tick_cap must be at least 1, got {tick_cap}")
        self.thinker, self.answer_shape, self.last_row = thinker, thinker.config.answer_shape, tick_cap - 1
        action, out = thinker.core.root_beta_table(tick_cap)
        self.register_buffer("action", action)
        self.register_buffer("out", out)

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        trace: Tensor,
        post: Tensor,
        action_sum: Tensor,
        out_sum: Tensor,
        ticks_done: Tensor,
        level: Tensor,
        found: Tensor,
    ) -> tuple[Tensor, ...]:
        """Context and state; next state, outputs."""
        # A slot that nobody thinks in ticks on with the others for ever: it stays at the tables' last row.
        row_B = ticks_done.clamp(max=self.last_row)
        root_beta = RootBeta(F.embedding(row_B, self.action), F.embedding(row_B, self.out))
        state, awareness = State(trace, post, action_sum, out_sum), Awareness(level, found)
        state, awareness, moment, attention = self.thinker.tick(masked(keys, values, mask), state, awareness, root_beta)
        prediction = torch.unflatten(moment.prediction, -1, self.answer_shape)
        return *state, ticks_done + 1, *awareness, prediction, moment.certainty, moment.state, attention
