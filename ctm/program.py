"""A CTM as a program: `encode` once, then `tick` with named tensors, as it is exported and served.

    inputs ── Encode ──> keys, values
    keys, values, trace, post, action_sum, out_sum, ticks_done ── Tick ──> next state, prediction, certainty, …

The numbers are the model's. What changes is the form: neighbouring linear layers are composed (in float64), whatever
does not depend on the input is computed beforehand, and the rows of a batch may be at different ticks.
"""

# Shapes: B rows, D neurons, M memory, I attention width, L tokens, h heads, K = I / h, A / O action / out pairs.

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.config import CTMConfig
from ctm.frozen import CertaintyReadout, ConvolutionNeurons, MatmulNeurons, compose, synapse_after
from ctm.model import CTM, Context, State

Role = Literal["prediction", "certainty", "energy", "detail", "done", "abstained"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """A named tensor of a program; its shape never holds the row dimension."""

    name: str
    shape: tuple[int, ...]
    datatype: str = "FP32"
    """As Open Inference names it."""
    role: Role | None = None
    description: str = ""
    minimum: float | None = None
    """Inputs only: what values mean anything."""
    maximum: float | None = None
    length_of: str = ""
    """Inputs only: this number says how many leading entries of that other input count."""
    buckets: tuple[int, ...] = ()
    """Inputs only, with a length: sizes that the first dimension may be cut to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """The tensors of a program, in the order of its graphs' arguments and results."""

    inputs: tuple[TensorSpec, ...]
    context: tuple[TensorSpec, ...]
    state: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    """What a tick gives besides the next state."""
    finish_inputs: tuple[TensorSpec, ...] = ()
    """What is read once a thought has ended, where one thought makes the input of the next; empty otherwise."""
    finish_outputs: tuple[TensorSpec, ...] = ()
    """One named next_NAME is the input NAME of the next thought."""


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
        state=specify_state(config),
        outputs=tuple(outputs),
    )


def specify_state(config: CTMConfig) -> tuple[TensorSpec, ...]:
    """What a thought carries from tick to tick."""
    return (
        TensorSpec(name="trace", shape=(config.width, config.memory), description="pre-activations, newest last"),
        TensorSpec(name="post", shape=(config.width,), description="post-activations"),
        TensorSpec(name="action_sum", shape=(config.action_pairs,), description="decayed pair products"),
        TensorSpec(name="out_sum", shape=(config.out_pairs,), description="decayed pair products"),
        TensorSpec(name="ticks_done", shape=(), datatype="INT64", description="finished ticks of this row"),
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

    token_weight: Tensor
    token_bias: Tensor

    @torch.no_grad()
    def __init__(self, model: CTM) -> None:
        """Freeze a model, whose configuration must know the shape of an input."""
        super().__init__()
        self.model = model
        linear, norm = model.embedding
        assert isinstance(linear, nn.Linear), "the embedding is a linear layer and a norm"
        self.norm = norm
        features = model.features(torch.zeros(1, *model.config.input_shape, device=linear.weight.device))
        # What the positional embedding adds to a token is known beforehand, so it becomes part of the bias.
        position = torch.zeros_like(features) if model.positional is None else model.positional(features)
        position_LC = position.expand_as(features).flatten(2)[0].T.double()
        self.register_buffer("token_weight", linear.weight.detach().T.contiguous())
        self.register_buffer("token_bias", (position_LC @ linear.weight.double().T + linear.bias.double()).float())

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """[B, *input_shape] to keys and values, [B, h, L, K] each."""
        features_BLC = self.model.features(inputs).flatten(2).transpose(1, 2)
        tokens_BLI = self.norm(torch.matmul(features_BLC, self.token_weight) + self.token_bias)
        return pack_context(self.model.attention.context(tokens_BLI))


class FrozenCore(nn.Module):
    """One tick as far as the out sync, of rows that may each be at a different tick."""

    root_beta_action: Tensor
    root_beta_out: Tensor
    keep_action: Tensor
    keep_out: Tensor
    left: Tensor
    right: Tensor

    @torch.no_grad()
    def __init__(self, model: CTM, tick_cap: int, *, convolve: bool) -> None:
        """Freeze a model; the arguments are those of `Tick`."""
        super().__init__()
        if tick_cap < 1:
            raise ValueError(f"tick_cap must be at least 1, got {tick_cap}")
        config, attention = model.config, model.attention
        self.heads, self.last_row = config.heads, tick_cap - 1
        self.query = compose(attention.query, model.query, scale=(config.attention_width // config.heads) ** -0.5)
        self.synapse = synapse_after(attention.out, model.synapse)
        convolve = convolve and ConvolutionNeurons.can_compute(model.neurons)
        self.neurons = (ConvolutionNeurons if convolve else MatmulNeurons)(model.neurons)

        action, out = model.action_sync, model.out_sync
        root_beta_action, root_beta_out = model.root_beta_table(tick_cap)
        keep_action, keep_out = model.keep()
        self.register_buffer("root_beta_action", root_beta_action)
        self.register_buffer("root_beta_out", root_beta_out)
        self.register_buffer("keep_action", keep_action)
        self.register_buffer("keep_out", keep_out)
        self.pairs = (config.action_pairs, config.out_pairs)
        self.register_buffer("left", torch.cat([action.left, out.left]))
        self.register_buffer("right", torch.cat([action.right, out.right]))

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        mask_BL: Tensor | None,
        trace: Tensor,
        post: Tensor,
        action_sum: Tensor,
        out_sum: Tensor,
        ticks_done: Tensor,
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """The next state, the out sync, and attention's weights, [B, h, L]; the mask is added to attention's scores."""
        # A slot that nobody thinks in ticks on with the others for ever: it stays at the last row of the tables.
        row_B = ticks_done.clamp(max=self.last_row)

        sync_action = action_sum / F.embedding(row_B, self.root_beta_action)
        query_Bh1K = self.query(sync_action).unflatten(-1, (self.heads, 1, -1))
        scores_Bh1L = torch.matmul(query_Bh1K, keys.transpose(-1, -2))
        if mask_BL is not None:
            scores_Bh1L = scores_Bh1L + mask_BL[:, None, None]
        attention_Bh1L = scores_Bh1L.softmax(-1)
        found_BI = torch.matmul(attention_Bh1L, values).flatten(1)

        pre = self.synapse(torch.cat([found_BI, post], dim=-1))
        next_trace = torch.cat([trace[:, :, 1:], pre.unsqueeze(-1)], dim=-1)
        next_post_DB = self.neurons(next_trace, post)

        # Picking whole rows of [D, B] is one copy for each pair; picking numbers out of [D, B] would be B.
        products = (next_post_DB.index_select(0, self.left) * next_post_DB.index_select(0, self.right)).T
        action_products, out_products = products.split(self.pairs, dim=-1)
        next_action_sum = self.keep_action * action_sum + action_products
        next_out_sum = self.keep_out * out_sum + out_products

        sync_out = next_out_sum / F.embedding(row_B, self.root_beta_out)
        next_state = (next_trace, next_post_DB.T, next_action_sum, next_out_sum, ticks_done + 1)
        return next_state, sync_out, attention_Bh1L.squeeze(-2)


class Tick(nn.Module):
    """One tick of rows that may each be at a different tick."""

    @torch.no_grad()
    def __init__(self, model: CTM, tick_cap: int, *, convolve: bool = False) -> None:
        """Freeze a model.

        Args:
            tick_cap: the most ticks a row may run; the tables are this long.
            convolve: compute the neuron-level models as convolutions where they allow it. Faster in ONNX Runtime on a
                CPU, where it is a third of a tick; many times slower in torch.
        """
        super().__init__()
        self.core = FrozenCore(model, tick_cap, convolve=convolve)
        self.answer_shape = model.config.answer_shape
        self.readout, self.certainty, self.energy = model.readout, CertaintyReadout(self.answer_shape), model.energy

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
        state, sync_out, attention = self.core(keys, values, None, trace, post, action_sum, out_sum, ticks_done)
        prediction = self.readout(sync_out).unflatten(-1, self.answer_shape)
        outputs = [prediction, self.certainty(prediction)]
        if self.energy is not None:
            outputs.append(self.energy(sync_out))
        return *state, *outputs, attention
