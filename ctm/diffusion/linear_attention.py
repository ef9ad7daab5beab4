"""Attention at a cost linear in length: exact for the most relevant keys, a Taylor polynomial of exp for the rest.

    s_ij  = q_i · k_j, ‖q_i‖ = 1
    near  : exp(s), for the E keys of the highest relevance r_j = q̄ · k_j + R ‖k_j‖
    far   : 1 + s + s²/2 = φ(q) · φ(k), φ(x) = (1, x, x ⊗ x / √2), with k shortened to the threshold: |s| <= τ
    found = (Σ_near exp(s) v + φ(q) Σ_far φ(k) vᵀ) / (Σ_near exp(s) + φ(q) Σ_far φ(k))

q̄ is the pooled query and R the farthest any query is from it, so r_j is at least every score of key j: a key left
out matters to nobody. Polynomial and exponential are positive, and so are all weights. With causality nobody is near
who is not in the query's own block of E tokens. No matrix of queries by keys is formed.

Sums over features instead of pairs: arXiv 2006.16236. Taylor features beside exact neighbours: arXiv 2402.18668.
"""

# Shapes: B rows, h heads, Q queries, L keys, E near keys, K width of queries and keys, V of values, W = V + 1,
# F = 1 + K + K² features, N blocks of E tokens, I model width.

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TINY = 1e-30
"""Less than any weight that is seen: divides what nobody has found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearAttentionConfig:
    """How much is exact, and how far the polynomial is trusted."""

    key_width: int = 16
    """[K] Of a head's queries and keys; the cost grows with its square."""
    exact: int = 16
    """[E] Keys of each head and row that are near; with `causal`, tokens of a block."""
    threshold: float = 1.0
    """[τ] Largest score that is left to the polynomial; see `taylor_error`."""
    causal: bool = False
    """Whether a query sees only itself and what comes before it."""

    def __post_init__(self) -> None:
        for name, least in (("key_width", 1), ("exact", 1 if self.causal else 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"linear_attention.{name} must be a whole number of at least {least}, got {value!r}")
        if not 0 < self.threshold <= 2:
            raise ValueError(f"linear_attention.threshold must be in (0, 2], got {self.threshold!r}")


def taylor_error(threshold: float) -> float:
    """How far from softmax attention over the same scores a result can be, as a share of the longest value.

    All far keys are to be no longer than the threshold. 0.046 for 0.5, 0.48 for 1; typical errors are far smaller.
    """
    too_low = 1 - math.exp(-threshold) * (1 + threshold + threshold**2 / 2)
    too_high = math.exp(threshold) * (1 - threshold + threshold**2 / 2) - 1
    return (too_low + too_high) / (1 - too_low)


def taylor_features(x: Tensor) -> Tensor:
    """φ, [..., K] to [..., 1 + K + K²]."""
    products = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
    return torch.cat([torch.ones_like(x[..., :1]), x, products * math.sqrt(0.5)], dim=-1)


class LinearAttention(nn.Module):
    """Multi-head attention of tokens to tokens."""

    def __init__(self, width: int, heads: int, config: LinearAttentionConfig) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide width {width}, got {heads}")
        self.heads, self.config = heads, config
        self.query = nn.Linear(width, heads * config.key_width)
        self.key = nn.Linear(width, heads * config.key_width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(
        self, query_BQI: Tensor, seen_BLI: Tensor, hidden_BL: Tensor | None = None, idle_BQ: Tensor | None = None
    ) -> Tensor:
        """What each query finds, [B, Q, I].

        Args:
            seen_BLI: what is looked at; the queries again for self-attention, which causality asks for.
            hidden_BL: true where nobody may look. Who may look nowhere finds nothing.
            idle_BQ: true for queries that are padding: they have no say in what is relevant.
        """
        query, key, value = (
            torch.unflatten(layer(x), -1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, query_BQI), (self.key, seen_BLI), (self.value, seen_BLI))
        )
        hidden = torch.zeros_like(seen_BLI[..., 0], dtype=torch.bool) if hidden_BL is None else hidden_BL
        unit: Tensor = F.normalize(query, dim=-1)
        exact, threshold = self.config.exact, self.config.threshold
        if self.config.causal:
            found = attend_causally(unit, key, value, hidden, block=exact, threshold=threshold)
        else:
            found = attend(unit, key, value, hidden, exact=exact, threshold=threshold, idle_BQ=idle_BQ)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out


def attend(
    unit_BhQK: Tensor,
    key_BhLK: Tensor,
    value_BhLV: Tensor,
    hidden_BL: Tensor,
    *,
    exact: int,
    threshold: float,
    idle_BQ: Tensor | None = None,
) -> Tensor:
    """[B, h, Q, V]; `unit_BhQK` has queries of length 1."""
    hidden_BhL = hidden_BL.unsqueeze(1).expand(key_BhLK.shape[:-1])
    value_BhLW = _with_ones(value_BhLV)
    relevance = relevance_of(unit_BhQK, key_BhLK, idle_BQ).masked_fill(hidden_BhL, -math.inf)
    # A tracer is shown no fewer keys than are exact: to it a size is a tensor, and a comparison of them a warning.
    near = exact if torch._C._is_tracing() else min(exact, key_BhLK.shape[-2])
    near_BhE = relevance.topk(near, dim=-1).indices
    # Not as truths: TorchScript knows no scatter of one.
    taken_BhL = torch.zeros_like(relevance).scatter(-1, near_BhE, 1.0)
    far_BhL = (taken_BhL == 0) & ~hidden_BhL
    features_BhLF = taylor_features(_shorten(key_BhLK, threshold)) * far_BhL.unsqueeze(-1)
    far_BhQW = taylor_features(unit_BhQK) @ (features_BhLF.transpose(-1, -2) @ value_BhLW)
    if not exact:
        return _divide(far_BhQW)
    near_key, near_value = (
        x.gather(-2, near_BhE.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])) for x in (key_BhLK, value_BhLW)
    )
    unseen_Bh1E = hidden_BhL.gather(-1, near_BhE).unsqueeze(-2)
    return _join(unit_BhQK @ near_key.transpose(-1, -2), unseen_Bh1E, near_value, far_BhQW)


@torch.no_grad()
def relevance_of(unit_BhQK: Tensor, key_BhLK: Tensor, idle_BQ: Tensor | None = None) -> Tensor:
    """A bound on every query's score of each key, [B, h, L]: of the pooled query, and of the one farthest from it."""
    busy = torch.ones_like(unit_BhQK[..., :1]) if idle_BQ is None else (~idle_BQ)[:, None, :, None].to(unit_BhQK)
    pooled_Bh1K = (unit_BhQK * busy).sum(-2, keepdim=True) / busy.sum(-2, keepdim=True).clamp(min=1)
    away_BhQ = torch.linalg.vector_norm(unit_BhQK - pooled_Bh1K, dim=-1) * busy.squeeze(-1)
    spread_Bh1 = away_BhQ.amax(-1, keepdim=True)
    bound_BhL: Tensor = (pooled_Bh1K * key_BhLK).sum(-1) + spread_Bh1 * torch.linalg.vector_norm(key_BhLK, dim=-1)
    return bound_BhL


def attend_causally(
    unit_BhLK: Tensor, key_BhLK: Tensor, value_BhLV: Tensor, hidden_BL: Tensor, *, block: int, threshold: float
) -> Tensor:
    """[B, h, L, V]: exact within a block of so many tokens, by the polynomial for all blocks before it."""
    length = unit_BhLK.shape[-2]
    short = -length % block
    unit, key, value = (
        torch.unflatten(F.pad(x, (0, 0, 0, short)), -2, (-1, block))
        for x in (unit_BhLK, key_BhLK, _with_ones(value_BhLV))
    )
    hidden_B1NE = torch.unflatten(F.pad(hidden_BL, (0, short), value=True), -1, (-1, block)).unsqueeze(1)
    features = taylor_features(_shorten(key, threshold)) * ~hidden_B1NE.unsqueeze(-1)
    sums_BhNFW = features.transpose(-1, -2) @ value
    before_BhNFW = sums_BhNFW.cumsum(2) - sums_BhNFW
    later_EE = torch.ones(block, block, dtype=torch.bool, device=unit.device).triu(1)
    unseen = hidden_B1NE.unsqueeze(-2) | later_EE
    found = _join(unit @ key.transpose(-1, -2), unseen, value, taylor_features(unit) @ before_BhNFW)
    return found.flatten(2, 3)[:, :, :length]


def _join(scores: Tensor, unseen: Tensor, near_value: Tensor, far: Tensor) -> Tensor:
    """The sums over near and far keys as one mean; all are divided by the largest exponential, which may be huge."""
    scores = scores.masked_fill(unseen, torch.finfo(scores.dtype).min)
    highest = scores.detach().amax(-1, keepdim=True)
    # Polynomials are about 1: where there is one, nothing is gained by raising what is smaller.
    shift = torch.where(far[..., -1:] > 0, highest.clamp(min=0.0), highest)
    weights = (scores - shift).exp() * ~unseen
    return _divide(weights @ near_value + far * (-highest.clamp(min=0.0)).exp())


def _divide(sums: Tensor) -> Tensor:
    return sums[..., :-1] / sums[..., -1:].clamp(min=_TINY)


def _with_ones(value: Tensor) -> Tensor:
    return torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)


def _shorten(key: Tensor, longest: float) -> Tensor:
    squares = key.square().sum(-1, keepdim=True)
    return key * (longest * squares.clamp(min=longest**2).rsqrt())
