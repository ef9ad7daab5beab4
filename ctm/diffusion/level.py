"""A level of noise as numbers that a linear map can read: sines and cosines."""

import math

import torch
from torch import Tensor

_PERIODS = 10_000.0


def level_code(level_N: Tensor, width: int) -> Tensor:
    """Sines and cosines of a level's number, [N, width]: `width` must be even."""
    rates = torch.exp(torch.arange(width // 2, device=level_N.device) * (-2 * math.log(_PERIODS) / width))
    angles = level_N.to(rates.dtype).unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
