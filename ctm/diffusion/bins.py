"""What a thought says about a noisy input: at each position, how likely the clean value is in each of K bins.

    certainty = 1 - entropy / ln K, averaged over positions        expected value = sum_k p_k centre_k

A class head on an input that comes with its class would be certain of nothing but what it was told; of pixels there is
something left to know.
"""

# Shapes: ... rows and positions, K bins.

import torch
from torch import Tensor


def centres(bins: int) -> Tensor:
    """The middle of each bin; together the bins cover [-1, 1]."""
    return (torch.arange(bins) + 0.5) * (2 / bins) - 1


def bin_of(values: Tensor, bins: int) -> Tensor:
    """The number of the bin that each value is in, int64; values beyond [-1, 1] are in the outermost."""
    return ((values + 1) * (bins / 2)).floor().long().clamp(0, bins - 1)


def expected(logits: Tensor) -> Tensor:
    """The mean of what [..., K] logits say, [...], in [-1, 1]."""
    bins = logits.shape[-1]
    return logits.softmax(-1) @ centres(bins).to(logits)
