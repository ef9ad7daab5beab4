"""HyperCTM: layers whose weights change while a thought runs, W + U(φ(z)) V(φ(z))ᵀ, anew at every tick.

After github.com/katoro8989/Plastic_Continuous_Thought_Machines. The change has a low rank and is made for each row of
its own from a signal z; U begins at zero, so a fresh HyperCTM thinks as its plain layers do.
"""

# Shapes: B rows, Z signal, R rank, W width of φ, P x Q the matrix that is changed, K inputs and N outputs of a layer.

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ctm.config import CTMConfig

COMPRESSED = 256
"""[W] Width of φ(z); fixed, as it is in the reference."""


class LowRankChange(nn.Module):
    """Makes U and V of a change of one P x Q matrix, for each row of the signal."""

    def __init__(self, signal: int, shape: tuple[int, int], rank: int, *, gated: bool) -> None:
        """Only U is zero at first: with V zero too neither would learn.

        Args:
            shape: P, Q.
            gated: whether a learned gate in (-1, 1), made from φ(z) too, scales the whole change.
        """
        super().__init__()
        self.rank = rank
        self.compressor = nn.Sequential(nn.Linear(signal, COMPRESSED), nn.LayerNorm(COMPRESSED), nn.SiLU())
        self.left = nn.Linear(COMPRESSED, shape[0] * rank)
        self.right = nn.Linear(COMPRESSED, shape[1] * rank)
        self.gate = nn.Linear(COMPRESSED, 1) if gated else None
        for zero in (self.left.weight, self.left.bias, self.right.bias):
            nn.init.zeros_(zero)

    def forward(self, signal_BZ: Tensor) -> tuple[Tensor, Tensor]:
        """U, [B, P, R], and V, [B, Q, R]: the change is U Vᵀ."""
        compressed_BW = self.compressor(signal_BZ)
        left = self.left(compressed_BW)
        if self.gate is not None:
            left = left * self.gate(compressed_BW).tanh()
        right = self.right(compressed_BW)
        return torch.unflatten(left, -1, (-1, self.rank)), torch.unflatten(right, -1, (-1, self.rank))


class HyperLinear(nn.Module):
    """A linear layer whose weight is changed by its own input."""

    def __init__(self, inputs: int, outputs: int, *, rank: int, gated: bool) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.change = LowRankChange(inputs, (outputs, inputs), rank, gated=gated)

    def forward(self, x_BK: Tensor) -> Tensor:
        left_BNR, right_BKR = self.change(x_BK)
        # First to R numbers, then to N: the N x K matrix is never formed.
        changed_B1N = (x_BK.unsqueeze(-2) @ right_BKR) @ left_BNR.transpose(-1, -2)
        y_BN: Tensor = self.base(x_BK) + changed_B1N.squeeze(-2)
        return y_BN


def hyper_levels(config: CTMConfig) -> tuple[frozenset[int], frozenset[int]]:
    """Levels of the synapse model's U-Net whose way down, and whose way up, is hyper; level 0 is the widest."""
    levels, layers = frozenset(range(config.synapse_depth - 1)), config.hyper_layers
    match layers:
        case "none":
            return frozenset(), frozenset()
        case "bottleneck":
            return frozenset({max(levels)}), frozenset({max(levels)})
        case "down":
            return levels, frozenset()
        case "up":
            return frozenset(), levels
        case "all":
            return levels, levels
        case _:
            return frozenset(layers), frozenset(layers)


# A head that makes as many numbers as a layer has outputs times its rank, the bias that tells the outputs, and the
# layer in words: under our names, then the reference's.
_HEADS = [
    (re.compile(pattern), bias, words)
    for pattern, bias, words in (
        (r"(synapse\.(down|up)\.(\d+)\.linear)\.change\.left\.bias", r"\1.base.bias", r"\2 \3"),
        (r"(synapses\.(down|up)_projections\.(\d+)\.linear)\.head_u\.bias", r"\1.base_layer.bias", r"\2 \3"),
        (r"(neurons\.layers\.\d)\.change\.right\.bias", r"\1.bias", "neurons"),
        (r"(trace_processor\.layers\.\d)\.head_v\.bias", r"\1.b1", "neurons"),
    )
]


def hyper_mismatch(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """How the hyper layers of two state dicts, under our names or the reference's, differ; empty when they do not."""
    ours, theirs = describe_hyper(expected), describe_hyper(weights)
    return "" if ours == theirs else f"the weights' hyper layers are {theirs}, the configuration's are {ours}"


def describe_hyper(weights: Mapping[str, Tensor]) -> str:
    """The hyper layers of a state dict in words, e.g. `down 2 of rank 8, up 2 of rank 8, neurons of rank 4`."""
    return ", ".join(sorted(_describe(weights))) or "none"


def _describe(weights: Mapping[str, Tensor]) -> Iterator[str]:
    for name, head in weights.items():
        for pattern, bias, words in _HEADS:
            if match := pattern.fullmatch(name):
                outputs = weights[match.expand(bias)].shape[-1:].numel() if match.expand(bias) in weights else 0
                rank = f"rank {head.numel() / outputs:g}" if outputs else "unknown rank"
                yield f"{match.expand(words)} of {rank}"
