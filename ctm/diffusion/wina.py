"""WINA: of a layer's inputs only those count that will move its output, by their size times their column's norm.

    score_i = |x_i| ‖W_i‖₂        W_i: the i-th column of W, what input i is multiplied by
    kept    = the k highest scores of a row, k = max(1, ⌊K (1 - sparsity)⌋); the other inputs are taken as 0

After WINA (arXiv 2505.19427). Where columns are orthogonal the squared error is exactly the sum of the dropped
scores' squares, so no other choice of k inputs does better; else it is so on average over signs. No training is needed.

The mask is a constant to the gradient: what flows back is the derivative of what was computed, dropped inputs and
the columns they would have met get none. A straight-through gradient would promise them an effect that they have not.
What is dropped is multiplied by zero, not skipped: torch and ONNX Runtime have no kernel that skips columns row by row.
"""

# Shapes: B rows, K inputs and N outputs of a layer.

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_HAIR = 1e-9
"""Above a whole number's rounding: 20 (1 - 0.8) is 3.9999999999999996 and has to be 4."""
STEEPEST = 0.8
"""No layer of a ramp is sparser."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WINAConfig:
    """How much is dropped, and where."""

    sparsity: float = 0.5
    """Share of the inputs that is dropped, in [0, 1); of the deepest layer where there is a ramp."""
    ramp: bool = False
    """Whether early layers drop less: half as much in the first one, rising to the last, at most 0.8 in any."""
    attention: bool = True
    """Whether attention weights are dropped too, not only inputs of linear layers."""

    def __post_init__(self) -> None:
        check_sparsity("sparsity", self.sparsity)

    def of_layers(self, layers: int) -> tuple[float, ...]:
        """The sparsity of each of so many layers, the first one first; a single one is the last."""
        if not self.ramp:
            return (self.sparsity,) * layers
        depths = (index / (layers - 1) if layers > 1 else 1.0 for index in range(layers))
        return tuple(min(self.sparsity * (0.5 + 0.5 * depth), STEEPEST) for depth in depths)


def check_sparsity(name: str, sparsity: float) -> None:
    """Raise ValueError unless it is a share in [0, 1)."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise ValueError(f"wina.{name} must be a share in [0, 1), got {sparsity!r}")


def kept(inputs: int, sparsity: float) -> int:
    """How many of so many inputs are kept."""
    return max(1, math.floor(inputs * (1 - sparsity) + _HAIR))


def kept_each(inputs: Tensor, sparsity: float) -> Tensor:
    """The same for counts in a tensor: int64, of its shape. Of nothing, nothing is kept."""
    counts = torch.floor(inputs.double() * (1 - sparsity) + _HAIR).long()
    return torch.minimum(counts.clamp(min=1), inputs.long())


def column_norms(weight_NK: Tensor) -> Tensor:
    """‖W_i‖₂ of every column, [K], in float32 and without gradient."""
    return weight_NK.detach().float().square().sum(0).sqrt()


@torch.no_grad()
def keep_largest(scores: Tensor, count: int | Tensor) -> Tensor:
    """True at exactly `count` places of the last dimension, those of the highest scores, the first ones of equals.

    Args:
        count: for all rows, or for each: a tensor that broadcasts against `scores`, its last size 1.
    """
    # Torch does not say which of equal scores its top-k names, nor need a runtime name the same.
    most = count if isinstance(count, int) else scores.shape[-1]
    highest = scores.topk(most, dim=-1).values
    if isinstance(count, Tensor):
        last = highest.gather(-1, (count - 1).clamp(min=0).expand(*scores.shape[:-1], 1))
    else:
        last = highest[..., -1:]
    above, equal = scores > last, scores == last
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.long().cumsum(-1) <= room))


class ColumnNorms:
    """Remembers the column norms of one weight, and notices when it is not that weight any more.

    Every change that torch counts is noticed: updates of an optimiser, `load_state_dict`, `copy_`, `mul_` and so on
    (the tensor's version), and another tensor in its place, on another device, or set as `.data` (its address; the
    old one is held until the next look, so that its address cannot be given away meanwhile). Changes in place of
    `weight.data` and through numpy go uncounted: call `forget` after them.
    """

    def __init__(self) -> None:
        self.computed = 0
        """How often they had to be computed."""
        self.forget()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        # A copy begins anew: the version of a copied weight counts from 0 again, and would meet ours by chance.
        return type(self), ()

    def forget(self) -> None:
        self._seen: Tensor | None = None
        self._version = -1
        self._norms = torch.empty(0)

    def of(self, weight_NK: Tensor) -> Tensor:
        """[K]"""
        if torch.compiler.is_compiling() or torch._C._is_tracing() or weight_NK.is_inference():
            # Tensors without address or version.
            return column_norms(weight_NK)
        if not self._is_same(weight_NK):
            # The norms of weights without gradient may not become inference tensors, which no training may touch.
            with torch.inference_mode(False):
                self._norms = column_norms(weight_NK)
            self._seen, self._version = weight_NK.detach(), weight_NK._version
            self.computed += 1
        return self._norms

    def _is_same(self, weight: Tensor) -> bool:
        seen = self._seen
        return (
            seen is not None
            and self._version == weight._version
            and (seen.data_ptr(), seen.shape, seen.stride()) == (weight.data_ptr(), weight.shape, weight.stride())
            and (seen.dtype, seen.device) == (weight.dtype, weight.device)
        )


class WINALinear(nn.Linear):
    """A linear layer that drops the inputs with the lowest scores; its weights are those of a plain one."""

    frozen_norms: Tensor | None

    def __init__(self, inputs: int, outputs: int, *, sparsity: float, bias: bool = True) -> None:
        check_sparsity("sparsity", sparsity)
        super().__init__(inputs, outputs, bias=bias)
        self.sparsity = sparsity
        self.norms = ColumnNorms()
        self.register_buffer("frozen_norms", None, persistent=False)

    @classmethod
    def from_linear(cls, linear: nn.Linear, sparsity: float) -> Self:
        """A sparse layer over the very parameters of a plain one."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, sparsity=sparsity, bias=linear.bias is not None)
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        norms = self.norms.of(self.weight) if self.frozen_norms is None else self.frozen_norms
        keep = keep_largest(x.detach().abs().float() * norms, kept(self.in_features, self.sparsity))
        # Multiplied, not chosen: what is not finite is seen in the output, dropped or not.
        return F.linear(x * keep, self.weight, self.bias)


def make_sparse(module: nn.Module, sparsity: float) -> None:
    """Have every linear layer inside drop inputs; its weights and their names stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, WINALinear.from_linear(child, sparsity))
        else:
            make_sparse(child, sparsity)


def freeze_norms(module: nn.Module) -> None:
    """Make the norms of every WINA layer inside constants, for export; they notice nothing from then on.

    A layer that is exported without works too, but computes them again at every run.
    """
    for layer in module.modules():
        if isinstance(layer, WINALinear):
            layer.frozen_norms = column_norms(layer.weight)
