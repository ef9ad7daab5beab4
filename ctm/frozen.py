"""Layers of a trained CTM in the form they are served in: the same numbers, fewer and faster operations.

Everything here is a linear layer composed with its neighbours, in float64, or the same sums asked of another operator.
"""

# Shapes: B rows, D neurons, M memory, K inputs and N outputs of a neuron-level layer, R rank of a change, P positions,
# C classes.

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.hyper import LowRankChange
from ctm.neuron import NeuronLayer, NeuronLevelModels
from ctm.synapse import GatedSynapse, UNetSynapse


def compose(outer: nn.Linear, inner: nn.Linear, scale: float) -> nn.Linear:
    """The one linear layer that does what `inner`, then `outer`, then a multiplication by `scale` do."""
    outer_weight = outer.weight.double()
    bias = outer_weight @ inner.bias.double() + outer.bias.double()
    return _linear(outer_weight @ inner.weight.double() * scale, bias * scale)


def synapse_after(out: nn.Linear, synapse: nn.Module) -> nn.Module:
    """The synapse model with attention's out projection moved into its first linear layer."""
    frozen = copy.deepcopy(synapse)
    assert isinstance(frozen, GatedSynapse | UNetSynapse), f"{type(synapse).__name__} has no frozen form"
    first = frozen if isinstance(frozen, GatedSynapse) else frozen.first
    assert isinstance(first.linear, nn.Linear), "the first layer of a synapse model is never hyper"
    first.linear = _absorb(first.linear, out)
    return frozen


class CertaintyReadout(nn.Module):
    """Logits to certainty, 1 - normalised entropy averaged over positions: log p, p log p, one linear layer.

    A sum over the last dimension would do, but ONNX Runtime begins it where a row happens to be aligned in memory: the
    last bit would depend on a row's place in the batch. Its matrix products add up every row in the same order.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        """`shape`: of one prediction, positions first, classes last."""
        super().__init__()
        self.shape = shape
        positions, classes = math.prod(shape[:-1]), shape[-1]
        self.register_buffer("weight", torch.full((1, positions * classes), 1 / (positions * math.log(classes))))
        self.register_buffer("bias", torch.ones(1))

    def forward(self, prediction: Tensor) -> Tensor:
        """[B, *shape] to [B]."""
        log_p = prediction.log_softmax(-1)
        return F.linear((log_p.exp() * log_p).flatten(1), self.weight, self.bias).squeeze(-1)


class MatmulNeurons(nn.Module):
    """Neuron-level models as batched matrix products over neurons: what torch and GPUs are good at."""

    def __init__(self, neurons: NeuronLevelModels) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_MatmulLayer(layer) for layer in _layers(neurons))

    def forward(self, trace_BDM: Tensor, last_post_BD: Tensor) -> Tensor:
        """Post-activations, neurons first: [D, B]."""
        x = trace_BDM.transpose(0, 1)
        for layer in self.layers:
            x = layer(x, last_post_BD)
        return x.squeeze(-1)


class _MatmulLayer(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(self, layer: NeuronLayer) -> None:
        super().__init__()
        self.norm = layer.norm
        weight, bias = _cooled(layer)
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float()[:, None])
        self.change = None if layer.change is None else _CooledChange(layer.change, layer.temperature)

    def forward(self, x_DBK: Tensor, last_post_BD: Tensor) -> Tensor:
        x_DBK = self.norm(x_DBK)
        y_DBN = torch.baddbmm(self.bias, x_DBK, self.weight)
        if self.change is not None:
            y_DBN = y_DBN + self.change(x_DBK.transpose(0, 1), last_post_BD).transpose(0, 1)
        return F.glu(y_DBN, dim=-1)


class _CooledChange(nn.Module):
    """What the change of a hyper layer adds, the layer's temperature divided out."""

    def __init__(self, change: LowRankChange, temperature: Tensor) -> None:
        super().__init__()
        self.change = copy.deepcopy(change)
        self.change.left = _linear(
            *(values.double() / temperature.double() for values in (change.left.weight, change.left.bias))
        )

    def forward(self, x_BDK: Tensor, last_post_BD: Tensor) -> Tensor:
        """[B, D, N]; a matrix product for each row, of which the others are no part."""
        left_BKR, right_BNR = self.change(last_post_BD)
        return torch.matmul(x_BDK, torch.matmul(left_BKR, right_BNR.transpose(-1, -2)))


class ConvolutionNeurons(nn.Module):
    """Neuron-level models as grouped convolutions, a neuron a group and rows as positions: the fastest in ONNX Runtime.

    Its batched matrix products have no bias, and adding one to [D, B, N] goes over it in pieces of N numbers, which
    takes as long as the product itself. A convolution adds its bias in passing.
    """

    def __init__(self, neurons: NeuronLevelModels) -> None:
        super().__init__()
        *hidden, last = _layers(neurons)
        self.hidden = nn.Sequential(*(_ConvolutionLayer(layer) for layer in hidden))
        self.last = _LastConvolutionLayer(last)

    @staticmethod
    def can_compute(neurons: NeuronLevelModels) -> bool:
        """A LayerNorm between the layers would need the neurons' inputs last."""
        return all(isinstance(layer.norm, nn.Identity) for layer in _layers(neurons))

    def forward(self, trace_BDM: Tensor, last_post_BD: Tensor) -> Tensor:
        """Post-activations, neurons first: [D, B]."""
        _, width, memory = trace_BDM.shape
        hidden = self.hidden(trace_BDM.permute(1, 2, 0).reshape(1, width * memory, -1))
        post: Tensor = self.last(hidden, last_post_BD)
        return post


class _ConvolutionLayer(nn.Module):
    """[1, D * K, B] to [1, D * N / 2, B]."""

    def __init__(self, layer: NeuronLayer) -> None:
        super().__init__()
        weight_DKN, bias_DN = _cooled(layer)
        self.value, self.gate = (
            _grouped_convolution(weight, bias)
            for weight, bias in zip(weight_DKN.chunk(2, dim=-1), bias_DN.chunk(2, dim=-1), strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        # Splitting a large result costs more than a second pass over the input.
        gated: Tensor = self.value(x) * self.gate(x).sigmoid()
        return gated


class _LastConvolutionLayer(nn.Module):
    """[1, D * K, B] to [D, B]."""

    def __init__(self, layer: NeuronLayer) -> None:
        super().__init__()
        self.neurons, _, _ = layer.weight.shape
        self.both = _grouped_convolution(*_cooled(layer))
        self.change = None if layer.change is None else _CooledChange(layer.change, layer.temperature)

    def forward(self, x: Tensor, last_post_BD: Tensor) -> Tensor:
        # A small result is split for less than a second pass costs.
        both = torch.unflatten(self.both(x), 1, (-1, 2))
        if self.change is not None:
            x_BDK = torch.unflatten(x, 1, (self.neurons, -1)).squeeze(0).permute(2, 0, 1)
            both = both + self.change(x_BDK, last_post_BD).permute(1, 2, 0)
        return F.glu(both, dim=2).flatten(0, 2)


def _grouped_convolution(weight_DKN: Tensor, bias_DN: Tensor) -> nn.Conv1d:
    """A group for each neuron."""
    neurons, inputs, outputs = weight_DKN.shape
    layer = nn.Conv1d(neurons * inputs, neurons * outputs, 1, groups=neurons, device="meta")
    layer.weight = nn.Parameter(weight_DKN.transpose(1, 2).reshape(-1, inputs, 1).float())
    layer.bias = nn.Parameter(bias_DN.flatten().float())
    return layer


def _absorb(linear: nn.Linear, out: nn.Linear) -> nn.Linear:
    """`linear` over (out(found), post) as one layer over (found, post)."""
    weight = linear.weight.double()
    found, post = weight[:, : out.out_features], weight[:, out.out_features :]
    composed = torch.cat([found @ out.weight.double(), post], dim=1)
    return _linear(composed, found @ out.bias.double() + linear.bias.double())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
    return layer


def _cooled(layer: NeuronLayer) -> tuple[Tensor, Tensor]:
    """Weight and bias with the temperature divided out, in float64."""
    temperature = layer.temperature.detach().double()
    return layer.weight.detach().double() / temperature, layer.bias.detach().double() / temperature


def _layers(neurons: NeuronLevelModels) -> list[NeuronLayer]:
    layers = list(neurons.layers)
    assert all(isinstance(layer, NeuronLayer) for layer in layers), "a neuron-level model is made of neuron layers"
    return layers  # type: ignore[return-value]  # checked in the line above
