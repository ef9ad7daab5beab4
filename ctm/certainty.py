"""How sure a prediction is: one minus its normalised entropy."""

import math

import torch
from torch import Tensor


def certainty(prediction: Tensor, shape: tuple[int, ...]) -> Tensor:
    """1 - entropy / ln(classes) of the softmax over the last size of `shape`, averaged over all positions.

    Args:
        prediction: logits, [..., C].
        shape: how C numbers are read: positions first, classes (at least 2) last.

    Returns:
        [...]. In [0, 1] but for rounding, which can leave it by about 1e-7: clamp where it matters.
    """
    log_p = torch.unflatten(prediction, -1, shape).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1) / math.log(shape[-1])
    return 1 - (entropy.flatten(prediction.dim() - 1).mean(-1) if len(shape) > 1 else entropy)


def most_certain(certainties_BT: Tensor) -> Tensor:
    """The tick with the highest certainty in each row, the earliest of equals, [B]."""
    return torch.argmax(certainties_BT, dim=-1)
