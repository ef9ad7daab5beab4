"""How tokens of the denoiser find each other: by softmax, by softmax of which WINA drops the least, or at linear cost.

The first two have the same weights, so that a denoiser which was trained densely can be run sparsely.
"""

# Shapes: N rows, Q queries, J tokens looked at, h heads, E width.

import torch
from torch import Tensor
from torch.nn import functional as F

from ctm.diffusion.linear_attention import LinearAttentionConfig
from ctm.diffusion.wina import WINAConfig
from ctm.diffusion.wina_attention import attend_sparsely

HIDDEN = -1e9
"""Added to a score: its weight is exactly 0."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, added_NJ: Tensor | None, weight_sparsity: float | None
) -> Tensor:
    """What each query finds, [N, Q, E]; `added_NJ` is added to the scores, 0 or `HIDDEN`."""
    query, key, value = (torch.unflatten(x, -1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = None if added_NJ is None else added_NJ[:, None, None]
    if weight_sparsity is None:
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    else:
        hidden = torch.zeros_like(key[:, :1, None, :, 0], dtype=torch.bool) if mask is None else mask < 0
        found, _ = attend_sparsely(query * query.shape[-1] ** -0.5, key, value, hidden, weight_sparsity)
    return found.transpose(1, 2).flatten(2)


def check_attention(linear: LinearAttentionConfig, wina: WINAConfig | None, tokens: int) -> None:
    """Raise ValueError unless a denoiser can attend so to that many tokens, those of a thought among them."""
    if wina is not None and wina.attention:
        raise ValueError(
            "diffusion.wina.attention drops attention weights, of which diffusion.linear_attention forms none: "
            "expected one of them, got both"
        )
    if linear.causal:
        raise ValueError("diffusion.linear_attention.causal must be false: patches see each other, got true")
    if linear.exact > tokens:
        raise ValueError(
            f"diffusion.linear_attention.exact must be at most the {tokens} tokens that the denoiser attends to, "
            f"got {linear.exact}"
        )
