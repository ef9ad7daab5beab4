"""Thinking at two speeds about a noisy image: a low level that ticks, guided by a high one; see `hierarchical.py`."""

# Shapes: B rows, L tokens, K low ticks in a cycle, A / O action / out pairs.

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from ctm.attention import Context, MaskedContext
from ctm.diffusion import hierarchical_program
from ctm.diffusion.hierarchical import HierarchicalCTM, HierarchicalState
from ctm.diffusion.root_betas import RootBetas
from ctm.diffusion.thinker import Moment, Thinker
from ctm.diffusion.thinker_program import masked
from ctm.model import CTM
from ctm.program import TensorSpec


class HierarchicalThinker(Thinker):
    """Guides by the out sync of the high level and the post-activations of the low one."""

    def __init__(self, model: HierarchicalCTM) -> None:
        super().__init__()
        self.model = model

    @property
    def core(self) -> CTM:  # type: ignore[override]  # it belongs to the model, and has its one name there
        """The low level."""
        return self.model.core

    def ticks(self, context: Context | MaskedContext, rows: int) -> Iterator[Moment]:
        for state, seen in islice(self.model.ticks(context, rows, again=self.recomputes), self.config.ticks):
            yield Moment(seen.prediction, seen.certainty, torch.cat([seen.sync_out, state.post], dim=-1))

    def state_specs(self) -> tuple[TensorSpec, ...]:
        return hierarchical_program.specify_state(self.model)

    def start_values(self) -> dict[str, Tensor]:
        return hierarchical_program.start_values(self.model)

    def frozen(self, tick_cap: int, *, convolve: bool) -> nn.Module:
        del convolve  # the neurons are computed as the model computes them
        return HierarchicalTick(self.model, tick_cap)


class HierarchicalTick(nn.Module):
    """One low tick of rows that may be at different ticks."""

    action: Tensor
    out: Tensor

    def __init__(self, model: HierarchicalCTM, tick_cap: int) -> None:
        """`tick_cap` is the most ticks a row may run."""
        super().__init__()
        if tick_cap < 1:
            raise ValueError(f"tick_cap must be at least 1, got {tick_cap}")
        self.model, self.answer_shape = model, model.config.answer_shape
        tables = model.frozen_tables(tick_cap)
        self.register_buffer("action", tables.action)
        self.register_buffer("out", tables.out)

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        trace: Tensor,
        post: Tensor,
        high: Tensor,
        reports: Tensor,
        action_sum: Tensor,
        out_sum: Tensor,
        ticks_done: Tensor,
    ) -> tuple[Tensor, ...]:
        """Context and state; next state, outputs."""
        state = HierarchicalState(trace, post, high, reports, action_sum, out_sum, ticks_done)
        after, seen = self.model.tick(masked(keys, values, mask), state, RootBetas(self.action, self.out))
        prediction = torch.unflatten(seen.prediction, -1, self.answer_shape)
        return *after, prediction, seen.certainty, torch.cat([seen.sync_out, after.post], dim=-1), seen.attention
