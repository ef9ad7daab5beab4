"""Images of a task as diffusion sees them: one channel, pooled down to the model's side, in [-1, 1]."""

from torch import Tensor
from torch.nn import functional as F


def to_diffusion(inputs: Tensor, side: int) -> Tensor:
    """[N, 1, A, A] in [0, 1] to [N, S, S] in [-1, 1]; S must divide A."""
    return 2 * F.avg_pool2d(inputs, inputs.shape[-1] // side).squeeze(1) - 1


def to_pixels(images: Tensor) -> Tensor:
    """[..., S, S] in [-1, 1] and a little beyond to [0, 1]."""
    return ((images + 1) / 2).clamp(0, 1)
