"""Multi-head attention with WINA everywhere: in its projections, its weights and its way out.

    q, k, v = W_q x̃, W_k c̃, W_v c̃            x̃: the inputs with the highest |x_i| ‖W_i‖₂, c̃ likewise
    a       = softmax(q kᵀ / √K)
    ã       = the weights with the highest a_j ‖v_j‖₂ of each query
    out     = W_o of the heads' ã v, dropped likewise

Weights are to values what inputs are to columns, so the same score serves (WINA, arXiv 2505.19427, has it for linear
layers only). Of the weights only visible ones count: padding neither takes a place nor makes one. What is left is not
made to sum to 1 again: that would take small values for large ones just where the score has chosen well.
"""

# Shapes: B rows, Q queries, L tokens looked at, I width, h heads, K = I / h.

import torch
from torch import Tensor, nn

from ctm.diffusion.wina import WINALinear, check_sparsity, keep_largest, kept_each


class WINAAttention(nn.Module):
    """Attention of tokens to tokens, of which the less telling parts are dropped."""

    def __init__(self, width: int, heads: int, *, sparsity: float, weight_sparsity: float | None = None) -> None:
        """`weight_sparsity` is of the attention weights, the same as of the projections by default."""
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide width {width}, got {heads}")
        self.heads = heads
        self.weight_sparsity = sparsity if weight_sparsity is None else weight_sparsity
        check_sparsity("weight_sparsity", self.weight_sparsity)
        self.query = WINALinear(width, width, sparsity=sparsity)
        self.key = WINALinear(width, width, sparsity=sparsity)
        self.value = WINALinear(width, width, sparsity=sparsity)
        self.out = WINALinear(width, width, sparsity=sparsity)

    def forward(self, query_BQI: Tensor, seen_BLI: Tensor, hidden_BL: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What each query finds, [B, Q, I], and the weights that it was found by, [B, h, Q, L], summing to 1 or less.

        Args:
            seen_BLI: what is looked at; the queries again for self-attention.
            hidden_BL: true where nobody may look. Who may look nowhere finds nothing: weights of 0.
        """
        query = self._split(self.query(query_BQI)) * (query_BQI.shape[-1] // self.heads) ** -0.5
        key, value = self._split(self.key(seen_BLI)), self._split(self.value(seen_BLI))
        if hidden_BL is None:
            hidden_BL = torch.zeros_like(seen_BLI[..., 0], dtype=torch.bool)
        found_BhQK, weights = attend_sparsely(query, key, value, hidden_BL[:, None, None], self.weight_sparsity)
        return self.out(found_BhQK.transpose(1, 2).flatten(2)), weights

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(1, 2)


def attend_sparsely(
    query_BhQK: Tensor, key_BhLK: Tensor, value_BhLK: Tensor, hidden_B11L: Tensor, sparsity: float
) -> tuple[Tensor, Tensor]:
    """What each query, scaled already, finds, [B, h, Q, K], and the weights that are kept, [B, h, Q, L]."""
    scores_BhQL = (query_BhQK @ key_BhLK.transpose(-1, -2)).float()
    weights = scores_BhQL.masked_fill(hidden_B11L, torch.finfo(torch.float32).min).softmax(-1) * ~hidden_B11L
    kept_weights = sparsify_weights(weights, value_BhLK, hidden_B11L, sparsity)
    return kept_weights.to(value_BhLK) @ value_BhLK, kept_weights


def sparsify_weights(weights_BhQL: Tensor, value_BhLK: Tensor, hidden_B11L: Tensor, sparsity: float) -> Tensor:
    """The weights that move the output most, as many as WINA keeps of the visible ones, and 0 elsewhere."""
    norms_Bh1L = value_BhLK.detach().float().square().sum(-1).sqrt().unsqueeze(-2)
    # A hidden one comes after every visible one, weights of 0 included.
    scores = (weights_BhQL.detach() * norms_Bh1L).masked_fill(hidden_B11L, -1.0)
    return weights_BhQL * keep_largest(scores, kept_each((~hidden_B11L).sum(-1, keepdim=True), sparsity))
