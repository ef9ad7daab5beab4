"""The Continuous Thought Machine (arXiv 2505.05522): a network that thinks in ticks.

    inputs ── encode ──> context ─────┐
                                      v
    start ──> state ──> tick ──> tick ──> tick ──> …      (forward is this loop)
                          └─> prediction, certainty

A tick reads the action sync, attends with it to the context, mixes what it found with the neurons' activity, lets each
neuron answer from its own trace, and reads the prediction off the out sync.
"""

# Shapes: B rows, T ticks, D neurons, M memory, I attention width, L tokens, h heads, A / O action / out pairs,
# C numbers in a prediction.

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctm.attention import Attention, Context, MaskedContext
from ctm.backbone import build_backbone, feature_channels
from ctm.certainty import certainty
from ctm.config import CTMConfig
from ctm.neuron import NeuronLevelModels
from ctm.positional import build_positional
from ctm.synapse import synapse_model
from ctm.sync import Synchronisation, select_pairs

__all__ = ["CTM", "Context", "RootBeta", "State", "Thoughts", "TickOutput", "Track"]


class State(NamedTuple):
    """What a thought carries from tick to tick."""

    trace: Tensor
    """[B, D, M] the last pre-activations of each neuron, the newest last."""
    post: Tensor
    """[B, D] post-activations."""
    action_sum: Tensor
    """[B, A] decayed sum of pair products, the start state's included."""
    out_sum: Tensor
    """[B, O]"""


class RootBeta(NamedTuple):
    """What a tick divides its sums by: the root of their decayed counts."""

    action: Tensor
    """[A], or [B, A] when rows are at different ticks."""
    out: Tensor
    """[O], or [B, O]"""


class Seen(NamedTuple):
    """What a tick shows of itself before a prediction is read off."""

    attention: Tensor
    """[B, h, L] weights; each head's sum to 1."""
    sync_action: Tensor
    """[B, A]"""
    sync_out: Tensor
    """[B, O]"""
    pre: Tensor
    """[B, D] pre-activations."""


class TickOutput(NamedTuple):
    """What can be seen of one tick."""

    prediction: Tensor
    """[B, C] logits."""
    certainty: Tensor
    """[B] 1 - normalised entropy; may leave [0, 1] by rounding."""
    energy: Tensor | None
    """[B] low where the prediction is right; None without an energy head."""
    attention: Tensor
    """[B, h, L] weights; each head's sum to 1."""
    sync_action: Tensor
    """[B, A]"""
    sync_out: Tensor
    """[B, O]"""
    pre: Tensor
    """[B, D] pre-activations."""


class Track(NamedTuple):
    """Everything that can be seen of all ticks."""

    outputs: TickOutput
    """Each field with the ticks second, [B, T, ...]."""
    states: State
    """Before the first tick and after every one, [B, T + 1, ...]."""
    root_beta: RootBeta
    """[T, A] and [T, O]"""


class Thoughts(NamedTuple):
    """What a batch of inputs led to, tick by tick."""

    predictions: Tensor
    """[B, T, C]"""
    certainties: Tensor
    """[B, T]"""
    energies: Tensor | None
    """[B, T]; None without an energy head."""
    sync_out: Tensor
    """[B, O] the out sync at the last tick."""
    track: Track | None
    """None unless asked for."""


class CTM(nn.Module):
    """A Continuous Thought Machine."""

    input_mean: Tensor
    input_std: Tensor

    def __init__(self, config: CTMConfig, *, seed: int | None = None) -> None:
        """Weights are drawn from torch's generator.

        Args:
            seed: draws the pairs of neurons; None takes the seed from torch's generator too.
        """
        super().__init__()
        self.config = config
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu"))
        width, memory, channels = config.width, config.memory, feature_channels(config)

        self.backbone = build_backbone(config)
        self.positional = build_positional(config, channels)
        self.embedding = nn.Sequential(
            nn.Linear(channels, config.attention_width), nn.LayerNorm(config.attention_width)
        )
        self.register_buffer("input_mean", torch.tensor(config.input_mean), persistent=False)
        self.register_buffer("input_std", torch.tensor(config.input_std), persistent=False)

        action_pairs, out_pairs = select_pairs(config, torch.Generator("cpu").manual_seed(seed))
        self.action_sync = Synchronisation(*action_pairs)
        self.query = nn.Linear(config.action_pairs, config.attention_width)
        self.attention = Attention(config.attention_width, config.heads, config.dropout)
        self.synapse = synapse_model(config)
        self.neurons = NeuronLevelModels(config)
        self.out_sync = Synchronisation(*out_pairs)
        self.readout = nn.Linear(config.out_pairs, config.out_dims)
        self.energy = EnergyHead(config.out_pairs, config.energy_hidden) if config.energy_hidden else None

        self.start_trace = nn.Parameter(_uniform((width, memory), (width + memory) ** -0.5))
        self.start_post = nn.Parameter(_uniform((width,), width**-0.5))

    def features(self, inputs: Tensor) -> Tensor:
        """What the backbone makes of the inputs, [B, channels, ...]."""
        if self.config.input_mean:
            channels = (-1,) + (1,) * (inputs.dim() - 2)
            inputs = (inputs - self.input_mean.view(channels)) / self.input_std.view(channels)
        features: Tensor = self.backbone(inputs)
        return features

    def embed(self, features: Tensor) -> Tensor:
        """One token for each position of the features, [B, L, I]."""
        if self.positional is not None:
            features = features + self.positional(features)
        tokens: Tensor = self.embedding(features.flatten(2).transpose(1, 2))
        return tokens

    def encode(self, inputs: Tensor) -> Context:
        """All that does not change over ticks, computed once."""
        return self.attention.context(self.embed(self.features(inputs)))

    def start(self, rows: int) -> State:
        """The state before the first tick; both sums already hold the products of the start post-activations."""
        post = self.start_post[None]
        state = State(self.start_trace[None], post, self.action_sync.products(post), self.out_sync.products(post))
        return State(*(value.expand(rows, *value.shape[1:]) for value in state))

    def tick(
        self, context: Context | MaskedContext, state: State, root_beta_action: Tensor, root_beta_out: Tensor
    ) -> tuple[State, TickOutput]:
        """One tick of all rows. A pure function: the state is not changed."""
        state, seen = self.advance(context, state, root_beta_action, root_beta_out)
        # Outside autocast's half precision: certainties are compared with thresholds.
        prediction = self.readout(seen.sync_out).to(state.post.dtype)
        energy = None if self.energy is None else self.energy(seen.sync_out).to(state.post.dtype)
        return state, TickOutput(prediction, certainty(prediction, self.config.answer_shape), energy, *seen)

    def advance(
        self, context: Context | MaskedContext, state: State, root_beta_action: Tensor, root_beta_out: Tensor
    ) -> tuple[State, Seen]:
        """A tick as far as the out sync, before anything is read off it."""
        sync_action = state.action_sum / root_beta_action
        found, attention = self.attention(self.query(sync_action), context)
        state, pre = self.take_in(found, state)
        return state, Seen(attention, sync_action, state.out_sum / root_beta_out, pre)

    def take_in(self, found: Tensor, state: State) -> tuple[State, Tensor]:
        """The next state, given what attention found, [B, I]; and the pre-activations that led to it."""
        keep_action, keep_out = self.keep()
        pre = self.synapse(torch.cat([found, state.post], dim=-1)).to(state.post.dtype)
        trace = torch.cat([state.trace[:, :, 1:], pre.unsqueeze(-1)], dim=-1)
        post = self.neurons(trace, state.post).to(state.post.dtype)
        action_sum = keep_action * state.action_sum + self.action_sync.products(post)
        out_sum = keep_out * state.out_sum + self.out_sync.products(post)
        return State(trace, post, action_sum, out_sum), pre

    def forward(self, inputs: Tensor, *, ticks: int | None = None, track: bool = False) -> Thoughts:
        """Think about every row for the same number of ticks, `config.ticks` unless given."""
        ticks = self.config.ticks if ticks is None else ticks
        if ticks < 1:
            raise ValueError(f"a thought takes at least 1 tick, got {ticks}")
        context, state = self.encode(inputs), self.start(len(inputs))
        states, outputs, root_betas = [state], [], []
        for root_beta in islice(self.root_betas(), ticks):
            state, output = self.tick(context, state, *root_beta)
            outputs.append(output)
            if track:
                states.append(state)
                root_betas.append(root_beta)
        return Thoughts(
            predictions=torch.stack([output.prediction for output in outputs], dim=1),
            certainties=torch.stack([output.certainty for output in outputs], dim=1),
            energies=_stack([output.energy for output in outputs]),
            sync_out=outputs[-1].sync_out,
            track=_track(outputs, states, root_betas) if track else None,
        )

    def keep(self) -> tuple[Tensor, Tensor]:
        """The share of each action and each out sum that survives a tick, [A] and [O], in (0, 1]."""
        return self.action_sync.keep(), self.out_sync.keep()

    def project_decays(self) -> None:
        """Move all decays back into [0, 15], in place; belongs after the optimiser's update."""
        self.action_sync.project_decay()
        self.out_sync.project_decay()

    def root_beta_table(self, ticks: int) -> tuple[Tensor, Tensor]:
        """What ticks 1 to `ticks` divide by, float32 [ticks, A] and [ticks, O], computed in float64.

        The out sum is read after this tick's products are added, the action sum before: it is one term shorter.
        """
        return self.action_sync.root_betas(ticks, first=1), self.out_sync.root_betas(ticks, first=2)

    def root_betas(self) -> Iterator[RootBeta]:
        """What successive ticks divide by, in the graph, so that decays learn through it."""
        keep_action, keep_out = self.keep()
        action, out = torch.ones_like(keep_action), 1 + keep_out
        while True:
            yield RootBeta(action.sqrt(), out.sqrt())
            action, out = 1 + keep_action * action, 1 + keep_out * out


class EnergyHead(nn.Module):
    """How wrong the model takes its own prediction to be: one number from the out sync."""

    def __init__(self, pairs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(pairs, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, sync_BO: Tensor) -> Tensor:
        energy_B: Tensor = self.out(nn.functional.silu(self.hidden(sync_BO))).squeeze(-1)
        return energy_B


def _uniform(shape: tuple[int, ...], bound: float) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound)


def _stack(values: list[Tensor | None]) -> Tensor | None:
    """Ticks second; None where a field is None at every tick."""
    present = [value for value in values if value is not None]
    return torch.stack(present, dim=1) if present else None


def _track(outputs: list[TickOutput], states: list[State], root_betas: list[RootBeta]) -> Track:
    return Track(
        TickOutput(
            prediction=torch.stack([output.prediction for output in outputs], dim=1),
            certainty=torch.stack([output.certainty for output in outputs], dim=1),
            energy=_stack([output.energy for output in outputs]),
            attention=torch.stack([output.attention for output in outputs], dim=1),
            sync_action=torch.stack([output.sync_action for output in outputs], dim=1),
            sync_out=torch.stack([output.sync_out for output in outputs], dim=1),
            pre=torch.stack([output.pre for output in outputs], dim=1),
        ),
        State(*(torch.stack(values, dim=1) for values in zip(*states, strict=True))),
        RootBeta(*(torch.stack(values) for values in zip(*root_betas, strict=True))),
    )
