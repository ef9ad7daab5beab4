"""A CTM as a program: `encode` once, then `tick` with named tensors, as it is exported and served.

    inputs ── Encode ──> keys, values
    keys, values, trace, post, action_sum, out_sum, ticks_done ── Tick ──> next state, prediction, certainty, …

The numbers are the model's. What changes is the form: neighbouring linear layers are composed (in float64), whatever
does not depend on the input is computed beforehand, and the rows of a batch may be at different ticks.
"""

# Shapes: B rows, D neurons, M memory, I attention width, L tokens, h heads, K = I / h, A / O action / out pairs,
# P pairs of either, C numbers in a prediction, H hidden width of the neuron-level models.

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.certainty import certainty
from ctm.model import CTM, Context, State
from ctm.neuron import NeuronLayer
from ctm.sync import Synchronisation
from ctm.synapse import GatedSynapse, UNetSynapse

__all__ = ["Encode", "Program", "TensorSpec", "Tick", "pack_context", "pack_state", "specify", "start_values"]

Role = Literal["prediction", "certainty", "energy", "detail"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """A named tensor of a program; its shape never holds the row dimension."""

    name: str
    shape: tuple[int, ...]
    datatype: str = "FP32"
    """As Open Inference names it."""
    role: Role | None = None
    description: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """The tensors of a program, in the order of its graphs' arguments and results."""

    inputs: tuple[TensorSpec, ...]
    context: tuple[TensorSpec, ...]
    state: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    """What a tick gives besides the next state."""


def specify(model: CTM, input_name: str = "input") -> Program:
    """The tensors of a model's program.

    Raises:
        ValueError: the configuration does not know the shape of an input.
    """
    config, (tokens, heads) = model.config, (token_count(model), model.config.heads)
    per_head = config.attention_width // heads
    outputs = [
        TensorSpec(name="prediction", shape=config.answer_shape, role="prediction", description="logits"),
        TensorSpec(name="certainty", shape=(), role="certainty", description="1 - normalised entropy"),
    ]
    if model.energy is not None:
        outputs.append(TensorSpec(name="energy", shape=(), role="energy", description="low where it should be right"))
    outputs.append(
        TensorSpec(name="attention", shape=(heads, tokens), role="detail", description="weights over tokens, by head")
    )
    return Program(
        inputs=(TensorSpec(name=input_name, shape=config.input_shape),),
        context=(
            TensorSpec(name="keys", shape=(heads, tokens, per_head)),
            TensorSpec(name="values", shape=(heads, tokens, per_head)),
        ),
        state=(
            TensorSpec(name="trace", shape=(config.width, config.memory), description="pre-activations, newest last"),
            TensorSpec(name="post", shape=(config.width,), description="post-activations"),
            TensorSpec(name="action_sum", shape=(config.action_pairs,), description="decayed pair products"),
            TensorSpec(name="out_sum", shape=(config.out_pairs,), description="decayed pair products"),
            TensorSpec(name="ticks_done", shape=(), datatype="INT64", description="finished ticks of this row"),
        ),
        outputs=tuple(outputs),
    )


@torch.no_grad()
def token_count(model: CTM) -> int:
    """How many tokens the model makes of an input.

    Raises:
        ValueError: the configuration does not know the shape of an input.
    """
    if not model.config.input_shape:
        raise ValueError("input_shape must be known to make a program, e.g. (1, 28, 28), got ()")
    features = model.features(torch.zeros(1, *model.config.input_shape, device=model.start_post.device))
    return int(features.flatten(2).shape[-1])


@torch.no_grad()
def start_values(model: CTM) -> dict[str, Tensor]:
    """The start value of every state tensor by its name, without the row dimension."""
    packed = pack_state(model.start(1), torch.zeros(1, dtype=torch.int64))
    return {
        spec.name: tensor[0].clone().contiguous() for spec, tensor in zip(specify(model).state, packed, strict=True)
    }


def pack_context(context: Context) -> tuple[Tensor, ...]:
    """The model's context as the program's context tensors, in order."""
    return context.keys, context.values


def pack_state(state: State, ticks_done_B: Tensor) -> tuple[Tensor, ...]:
    """The model's state as the program's state tensors, in order."""
    return state.trace, state.post, state.action_sum, state.out_sum, ticks_done_B


class Encode(nn.Module):
    """All that does not change over ticks: input to keys and values."""

    def __init__(self, model: CTM) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """[B, *input_shape] to keys and values, [B, h, L, K] each."""
        return pack_context(self.model.encode(inputs))


class Tick(nn.Module):
    """One tick of rows that may each be at a different tick."""

    root_beta_action: Tensor
    root_beta_out: Tensor
    left: Tensor
    right: Tensor
    keep_action: Tensor
    keep_out: Tensor

    @torch.no_grad()
    def __init__(self, model: CTM, tick_cap: int) -> None:
        """Freeze a model.

        Args:
            tick_cap: the most ticks a row may run; the tables are this long.
        """
        super().__init__()
        config = model.config
        if tick_cap < 1:
            raise ValueError(f"tick_cap must be at least 1, got {tick_cap}")
        self.heads, self.answer_shape, self.tick_cap = config.heads, config.answer_shape, tick_cap
        self.query = _compose(
            model.attention.query, model.query, scale=(config.attention_width // config.heads) ** -0.5
        )
        self.synapse = _after_attention(model.synapse, model.attention.out)
        self.neurons = nn.Sequential(*(FrozenNeuronLayer(layer) for layer in model.neurons.layers))
        self.readout, self.energy = model.readout, model.energy
        action_table, out_table = model.root_beta_table(tick_cap)
        keep_action, keep_out = model.keep()
        self.register_buffer("root_beta_action", action_table)
        self.register_buffer("root_beta_out", out_table)
        self.register_buffer("keep_action", keep_action.detach().clone())
        self.register_buffer("keep_out", keep_out.detach().clone())
        self.action_pairs, self.out_pairs = _Pairs(model.action_sync), _Pairs(model.out_sync)

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        trace: Tensor,
        post: Tensor,
        action_sum: Tensor,
        out_sum: Tensor,
        ticks_done: Tensor,
    ) -> tuple[Tensor, ...]:
        """Arguments and results in the order of `specify`: context, state; next state, outputs."""
        # Rows of slots that nobody thinks in ride along for ever: they stay at the table's last row.
        row_B = ticks_done.clamp(max=self.tick_cap - 1)
        sync_action = action_sum / self.root_beta_action[row_B]

        query_Bh1K = self.query(sync_action).unflatten(-1, (self.heads, 1, -1))
        attention_Bh1L = torch.matmul(query_Bh1K, keys.transpose(-1, -2)).softmax(-1)
        found_BI = torch.matmul(attention_Bh1L, values).flatten(1)

        pre = self.synapse(torch.cat([found_BI, post], dim=-1))
        next_trace = torch.cat([trace[:, :, 1:], pre.unsqueeze(-1)], dim=-1)
        next_post = self.neurons(next_trace.transpose(0, 1)).squeeze(-1).transpose(0, 1)

        next_action_sum = self.keep_action * action_sum + self.action_pairs(next_post)
        next_out_sum = self.keep_out * out_sum + self.out_pairs(next_post)
        sync_out = next_out_sum / self.root_beta_out[row_B]
        prediction = self.readout(sync_out)

        outputs = [prediction.unflatten(-1, self.answer_shape), certainty(prediction, self.answer_shape)]
        if self.energy is not None:
            outputs.append(self.energy(sync_out))
        outputs.append(attention_Bh1L.squeeze(-2))
        return next_trace, next_post, next_action_sum, next_out_sum, ticks_done + 1, *outputs


class FrozenNeuronLayer(nn.Module):
    """A neuron-level layer and its gate, with the temperature divided out of the weights."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: NeuronLayer) -> None:
        super().__init__()
        temperature = layer.temperature.double()
        self.norm = layer.norm
        self.register_buffer("weight", (layer.weight.double() / temperature).float())
        self.register_buffer("bias", (layer.bias.double() / temperature).float()[:, None])

    def forward(self, x_DBK: Tensor) -> Tensor:
        y_DBN = torch.matmul(self.norm(x_DBK), self.weight) + self.bias
        return F.glu(y_DBN, dim=-1)


class _Pairs(nn.Module):
    """What each pair of a sync does at this tick."""

    left: Tensor
    right: Tensor

    def __init__(self, sync: Synchronisation) -> None:
        super().__init__()
        self.register_buffer("left", sync.left)
        self.register_buffer("right", sync.right)

    def forward(self, post_BD: Tensor) -> Tensor:
        return post_BD.index_select(1, self.left) * post_BD.index_select(1, self.right)


def _compose(outer: nn.Linear, inner: nn.Linear, scale: float = 1.0) -> nn.Linear:
    """The one linear layer that does what `inner`, then `outer`, then a multiplication do."""
    weight = outer.weight.double() @ inner.weight.double()
    bias = outer.weight.double() @ inner.bias.double() + outer.bias.double()
    return _linear(weight * scale, bias * scale)


def _after_attention(synapse: nn.Module, out: nn.Linear) -> nn.Module:
    """The synapse model with attention's out projection moved into its first linear layer."""
    if isinstance(synapse, GatedSynapse):
        first = _absorb(synapse.linear, out)
        return nn.Sequential(first, synapse.gate, synapse.norm)
    assert isinstance(synapse, UNetSynapse), f"{type(synapse).__name__} is not known here"
    frozen = UNetSynapse.__new__(UNetSynapse)
    nn.Module.__init__(frozen)
    frozen.first = nn.Sequential(_absorb(synapse.first.linear, out), synapse.first.norm, synapse.first.activation)
    frozen.down, frozen.up, frozen.norms = synapse.down, synapse.up, synapse.norms
    return frozen


def _absorb(linear: nn.Linear, out: nn.Linear) -> nn.Linear:
    """`linear` over (out(found), post), as one layer over (found, post)."""
    weight, width = linear.weight.double(), out.out_features
    found, post = weight[:, :width], weight[:, width:]
    composed = torch.cat([found @ out.weight.double(), post], dim=1)
    return _linear(composed, found @ out.bias.double() + linear.bias.double())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
    return layer
