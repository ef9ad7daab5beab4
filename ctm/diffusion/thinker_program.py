"""The tick of a thought about a noisy image, frozen: rows at different ticks, tokens that may be hidden."""

# Shapes: B rows, L tokens.

import torch
from torch import Tensor, nn

from ctm.attention import MaskedContext
from ctm.frozen import CertaintyReadout
from ctm.model import CTM
from ctm.program import FrozenCore


def masked(keys: Tensor, values: Tensor, mask_BL: Tensor) -> MaskedContext:
    """The program's context as a core's; the mask is very low where there is no token."""
    return MaskedContext(keys, values, (mask_BL < 0).unsqueeze(1))


class PlainTick(nn.Module):
    """One tick of a CTM."""

    @torch.no_grad()
    def __init__(self, core: CTM, tick_cap: int, *, convolve: bool, traces: bool = False) -> None:
        """The arguments are as for a CTM's `Tick`; `traces`: whether they are part of what guides."""
        super().__init__()
        self.traces = traces
        self.core = FrozenCore(core, tick_cap, convolve=convolve)
        self.answer_shape = core.config.answer_shape
        self.readout, self.certainty = core.readout, CertaintyReadout(self.answer_shape)

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
    ) -> tuple[Tensor, ...]:
        """Context (the mask, [B, L], is added to attention's scores) and state; next state, outputs."""
        state, sync_out, attention = self.core(keys, values, mask, trace, post, action_sum, out_sum, ticks_done)
        prediction = self.readout(sync_out).unflatten(-1, self.answer_shape)
        guide = torch.cat([sync_out, state[1], *([state[0].flatten(1)] if self.traces else [])], dim=-1)
        return *state, prediction, self.certainty(prediction), guide, attention
