"""A CTM of two speeds: a fast low level that ticks, and a slow high level that ticks once in K of them and guides it.

    tokens ──> keys, values ─────────┐
                                     v
    low level:   tick ─> tick ─> … ─> tick (K of them; the action sync begins anew with each K)
                   └── reports ──┴──────┴──> high level: attend to the K reports, then an MLP ──> guides the next K
                                               └─> out sync ──> prediction

    low     q = Query(sync_action) + G_q h        found = Attention(q, keys, values) + G_f h     (the rest is a CTM's)
    report  r_k = Linear(post_k)
    high    h' = Norm(h + Attention(h, r_1..r_K))         h = Norm(h' + MLP(h'))

After the two time scales of the Hierarchical Reasoning Model (arXiv 2506.21734), on a CTM (arXiv 2505.05522) as the
description "CTM-controlled diffusion" means it; see docs/design/hierarchical.md.
"""

# Shapes: B rows, D neurons, M memory, K low ticks in a cycle, W high width, A / O action / out pairs.

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.attention import Attention, Context, MaskedContext
from ctm.certainty import certainty
from ctm.config import CTMConfig
from ctm.diffusion.recompute import computed
from ctm.diffusion.root_betas import RootBetas, root_betas
from ctm.model import CTM, Thoughts, TickOutput
from ctm.sync import Synchronisation, select_pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class HierarchicalConfig:
    """What a CTM needs besides its own sizes to have a high level."""

    low_ticks: int = 4
    """[K] Low ticks to one of the high level; divides the CTM's `ticks`."""

    high_width: int = 64
    """[W] Numbers in the high level's state; the CTM's `out_neurons` are drawn from them."""

    high_heads: int = 4
    """Heads of the high level's attention; divides `high_width`."""

    def __post_init__(self) -> None:
        for name in ("low_ticks", "high_width", "high_heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"hierarchical.{name} must be a whole number of at least 1, got {value!r}")
        if self.high_width % self.high_heads:
            raise ValueError(f"hierarchical.high_heads must divide high_width {self.high_width}, got {self.high_heads}")

    def check_core(self, core: CTMConfig) -> None:
        """Raise ValueError, naming both sides, unless a CTM of this configuration can be the low level."""
        if core.ticks % self.low_ticks:
            raise ValueError(f"hierarchical.low_ticks must divide ticks {core.ticks}, got {self.low_ticks}")
        needed = core.out_neurons + core.action_neurons
        if core.neuron_selection == "first-last" and needed > self.high_width:
            raise ValueError(f"first-last needs hierarchical.high_width of at least {needed}, got {self.high_width}")


class HierarchicalState(NamedTuple):
    """What a thought carries from tick to tick."""

    trace: Tensor
    """[B, D, M] pre-activations of the low level, the newest last."""
    post: Tensor
    """[B, D] post-activations of the low level."""
    high: Tensor
    """[B, W] the high level."""
    reports: Tensor
    """[B, K, W] what the low level said at each place of a cycle; places not reached yet hold the last cycle's."""
    action_sum: Tensor
    """[B, A] decayed pair products of this cycle's post-activations."""
    out_sum: Tensor
    """[B, O] decayed pair products of the high level's states."""
    ticks_done: Tensor
    """[B] INT64, low ticks."""


class HierarchicalCTM(nn.Module):
    """A CTM that a slower level guides, with that level's states to read the answer off."""

    def __init__(self, config: CTMConfig, hierarchy: HierarchicalConfig, *, seed: int | None = None) -> None:
        """Raises ValueError when the two configurations do not fit; the seed draws pairs, as for a CTM."""
        super().__init__()
        hierarchy.check_core(config)
        self.config, self.hierarchy = config, hierarchy
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu"))
        width = hierarchy.high_width
        self.core = CTM(config, seed=seed)
        # Its out sync, readout and energy head read the high level: so its pairs are not of neurons.
        _, out_pairs = select_pairs(replace(config, width=width), torch.Generator("cpu").manual_seed(seed))
        self.core.out_sync = Synchronisation(*out_pairs)
        self.guide = nn.Linear(width, 2 * config.attention_width)
        self.report = nn.Linear(config.width, width)
        self.high = HighLevel(hierarchy, config.dropout)
        self.start_high = nn.Parameter(nn.init.trunc_normal_(torch.empty(width)))

    def encode(self, inputs: Tensor) -> Context:
        """All that does not change over ticks, computed once."""
        return self.core.encode(inputs)

    def start(self, rows: int) -> HierarchicalState:
        """The state before the first tick; both sums hold the products of what they start from."""
        core, post, high = self.core, self.core.start_post[None], self.start_high[None]
        reports = high.new_zeros(1, self.hierarchy.low_ticks, self.hierarchy.high_width)
        sums = core.action_sync.products(post), core.out_sync.products(high)
        ticks_done = torch.zeros(1, dtype=torch.int64, device=post.device)
        state = HierarchicalState(core.start_trace[None], post, high, reports, *sums, ticks_done)
        return HierarchicalState(*(value.expand(rows, *value.shape[1:]) for value in state))

    def tables(self, ticks: int) -> RootBetas:
        """What `tick` divides by, in the graph: [K, A] by the place in a cycle, [cycles + 1, O] by the cycles over."""
        low_ticks = self.hierarchy.low_ticks
        action, out = self.core.action_sync, self.core.out_sync
        return RootBetas(root_betas(action, low_ticks), root_betas(out, ticks // low_ticks + 1))

    def frozen_tables(self, ticks: int) -> RootBetas:
        """The same, computed in float64 and out of the graph."""
        low_ticks = self.hierarchy.low_ticks
        action, out = self.core.action_sync, self.core.out_sync
        return RootBetas(action.root_betas(low_ticks, first=1), out.root_betas(ticks // low_ticks + 1, first=1))

    def tick(
        self, context: Context | MaskedContext, state: HierarchicalState, tables: RootBetas
    ) -> tuple[HierarchicalState, TickOutput]:
        """One low tick of rows that may be at different ticks, and the high level's where a cycle ends.

        A pure function. The high level is computed for all rows and taken where it is due.
        """
        low_ticks = self.hierarchy.low_ticks
        place_B = state.ticks_done.remainder(low_ticks)
        state, low = self._low(context, state, place_B, F.embedding(place_B, tables.action))
        after, ended_B1 = self._high(state), (place_B == low_ticks - 1).unsqueeze(-1)
        state = state._replace(
            high=torch.where(ended_B1, after.high, state.high),
            action_sum=torch.where(ended_B1, after.action_sum, state.action_sum),
            out_sum=torch.where(ended_B1, after.out_sum, state.out_sum),
        )
        # A slot that nobody thinks in ticks on with the others for ever: it stays at the table's last row.
        cycles_B = state.ticks_done.div(low_ticks, rounding_mode="floor").clamp(max=tables.out.shape[0] - 1)
        return state, self._read(state, F.embedding(cycles_B, tables.out), low)

    def ticks(
        self, context: Context | MaskedContext, rows: int, *, again: bool = False
    ) -> Iterator[tuple[HierarchicalState, TickOutput]]:
        """Tick after tick, without end, of rows that keep time: no high level is computed in vain.

        Args:
            again: whether ticks are computed once more for the backward pass, see `recompute`.
        """
        state, low_ticks = self.start(rows), self.hierarchy.low_ticks
        action, beta_out = root_betas(self.core.action_sync, low_ticks), torch.ones_like(state.out_sum[0])
        for done in count():
            place = done % low_ticks
            here = torch.tensor(place, device=state.post.device)
            state, low = computed(self._low, again, context, state, here, action[place])
            if place == low_ticks - 1:
                state, beta_out = computed(self._high, again, state), 1 + self.core.out_sync.keep() * beta_out
            yield state, computed(self._read, again, state, beta_out.sqrt(), low)

    def forward(self, inputs: Tensor, *, ticks: int | None = None) -> Thoughts:
        """Think about every row for the same number of low ticks, `config.ticks` unless given."""
        ticks = self.config.ticks if ticks is None else ticks
        if ticks < 1:
            raise ValueError(f"a thought takes at least 1 tick, got {ticks}")
        outputs = [output for _, output in islice(self.ticks(self.encode(inputs), len(inputs)), ticks)]
        energies = [output.energy for output in outputs if output.energy is not None]
        return Thoughts(
            predictions=torch.stack([output.prediction for output in outputs], dim=1),
            certainties=torch.stack([output.certainty for output in outputs], dim=1),
            energies=torch.stack(energies, dim=1) if energies else None,
            sync_out=outputs[-1].sync_out,
            track=None,
        )

    def project_decays(self) -> None:
        """Move all decays back into [0, 15], in place; belongs after the optimiser's update."""
        self.core.project_decays()

    def _low(
        self, context: Context | MaskedContext, state: HierarchicalState, place: Tensor, root_beta: Tensor
    ) -> tuple[HierarchicalState, "_Low"]:
        """A tick of the low level at a place of its cycle, [] or [B], and its report."""
        core, kind = self.core, state.post.dtype
        sync_action = state.action_sum / root_beta
        # A vector added to every token would leave attention's weights as they are: softmax takes no note of what is
        # the same for all. So the high level moves the query, and what was found, which is all that such a vector does.
        guide_query, guide_found = self.guide(state.high).chunk(2, dim=-1)
        found, attention = core.attention(core.query(sync_action) + guide_query, context)
        pre = core.synapse(torch.cat([found + guide_found, state.post], dim=-1)).to(kind)
        trace = torch.cat([state.trace[:, :, 1:], pre.unsqueeze(-1)], dim=-1)
        post = core.neurons(trace, state.post).to(kind)
        here_K1 = (torch.arange(self.hierarchy.low_ticks, device=place.device) == place.unsqueeze(-1)).unsqueeze(-1)
        reports = torch.where(here_K1, self.report(post).to(kind).unsqueeze(1), state.reports)
        action_sum = core.action_sync.keep() * state.action_sum + core.action_sync.products(post)
        state = HierarchicalState(trace, post, state.high, reports, action_sum, state.out_sum, state.ticks_done + 1)
        return state, _Low(attention, sync_action, pre)

    def _high(self, state: HierarchicalState) -> HierarchicalState:
        """A tick of the high level on a cycle's reports; the action sync begins anew."""
        core = self.core
        high = self.high(state.high, state.reports).to(state.high.dtype)
        out_sum = core.out_sync.keep() * state.out_sum + core.out_sync.products(high)
        return state._replace(high=high, action_sum=core.action_sync.products(state.post), out_sum=out_sum)

    def _read(self, state: HierarchicalState, root_beta: Tensor, low: "_Low") -> TickOutput:
        core, kind = self.core, state.post.dtype
        sync_out = state.out_sum / root_beta
        prediction = core.readout(sync_out).to(kind)
        energy = None if core.energy is None else core.energy(sync_out).to(kind)
        sure = certainty(prediction, self.config.answer_shape)
        return TickOutput(prediction, sure, energy, low.attention, low.sync_action, sync_out, low.pre)


class HighLevel(nn.Module):
    """One tick of the high level: attention to the reports of a cycle, then an MLP, each followed by its norm."""

    def __init__(self, hierarchy: HierarchicalConfig, dropout: float) -> None:
        super().__init__()
        width = hierarchy.high_width
        self.place = nn.Parameter(torch.zeros(hierarchy.low_ticks, width))
        self.attention = Attention(width, hierarchy.high_heads, dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_norm = nn.LayerNorm(width)

    def forward(self, high_BW: Tensor, reports_BKW: Tensor) -> Tensor:
        found_BW, _ = self.attention(high_BW, self.attention.context(reports_BKW + self.place))
        high_BW = self.attention_norm(high_BW + found_BW)
        high_BW = self.mlp_norm(high_BW + self.mlp(high_BW))
        return high_BW


class _Low(NamedTuple):
    """What a low tick shows of itself; see `TickOutput`."""

    attention: Tensor
    sync_action: Tensor
    pre: Tensor
