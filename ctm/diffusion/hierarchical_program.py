"""A hierarchical CTM as a program: `encode` once, then one low tick at a time with named tensors.

    keys, values, trace, post, high, reports, action_sum, out_sum, ticks_done ── Tick ──> next state, prediction, …

Rows may be at different ticks, and so at different places of their cycles.
"""

# Shapes: B rows, D neurons, M memory, K low ticks in a cycle, W high width, A / O action / out pairs.

from dataclasses import replace

import torch
from torch import Tensor, nn

from ctm import program
from ctm.attention import Context
from ctm.diffusion.hierarchical import HierarchicalCTM, HierarchicalState
from ctm.diffusion.root_betas import RootBetas
from ctm.program import Program, TensorSpec


def specify(model: HierarchicalCTM, input_name: str = "input") -> Program:
    """The tensors of a model's program; those that a CTM has too are the same.

    Raises:
        ValueError: the configuration does not know the shape of an input.
    """
    return replace(program.specify(model.core, input_name), state=specify_state(model))


def specify_state(model: HierarchicalCTM) -> tuple[TensorSpec, ...]:
    """What a thought carries from tick to tick."""
    hierarchy = model.hierarchy
    trace, post, action_sum, out_sum, ticks_done = program.specify_state(model.config)
    return (
        trace,
        post,
        TensorSpec(name="high", shape=(hierarchy.high_width,), description="the high level"),
        TensorSpec(
            name="reports",
            shape=(hierarchy.low_ticks, hierarchy.high_width),
            description="the low level's reports by place in the cycle",
        ),
        action_sum,
        out_sum,
        ticks_done,
    )


@torch.no_grad()
def start_values(model: HierarchicalCTM) -> dict[str, Tensor]:
    """The start value of every state tensor by its name, without the row dimension."""
    return {name: value[0].clone() for name, value in model.start(1)._asdict().items()}


class Tick(nn.Module):
    """One low tick of rows that may each be at a different tick."""

    action: Tensor
    out: Tensor

    def __init__(self, model: HierarchicalCTM, tick_cap: int) -> None:
        """Freeze a model's tables for rows of at most `tick_cap` ticks."""
        super().__init__()
        if tick_cap < 1:
            raise ValueError(f"tick_cap must be at least 1, got {tick_cap}")
        self.model = model
        tables = model.frozen_tables(tick_cap)
        self.register_buffer("action", tables.action)
        self.register_buffer("out", tables.out)

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        trace: Tensor,
        post: Tensor,
        high: Tensor,
        reports: Tensor,
        action_sum: Tensor,
        out_sum: Tensor,
        ticks_done: Tensor,
    ) -> tuple[Tensor, ...]:
        """Arguments and results in the order of `specify`: context, state; next state, outputs."""
        state = HierarchicalState(trace, post, high, reports, action_sum, out_sum, ticks_done)
        after, seen = self.model.tick(Context(keys, values), state, RootBetas(self.action, self.out))
        prediction = torch.unflatten(seen.prediction, -1, self.model.config.answer_shape)
        outputs = [prediction, seen.certainty]
        if seen.energy is not None:
            outputs.append(seen.energy)
        return *after, *outputs, seen.attention
