"""Attention of a thought to its input: keys and values projected once, one query a tick."""

# Shapes: B rows, L tokens, I attention width, h heads, K = I / h.

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Context(NamedTuple):
    """Everything of an input that a tick needs; it does not change over ticks."""

    keys: Tensor
    """[B, h, L, K]"""
    values: Tensor
    """[B, h, L, K]"""


class Attention(nn.Module):
    """Multi-head attention of a single query."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        for projection in (self.query, self.key, self.value):
            # The reference draws all three at once, as one Xavier matrix of [3I, I].
            nn.init.uniform_(projection.weight, -((1.5 / width) ** 0.5), (1.5 / width) ** 0.5)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.out.bias)

    def context(self, tokens_BLI: Tensor) -> Context:
        """Project tokens into keys and values and split them by head."""
        keys_BLhK, values_BLhK = self._split(self.key(tokens_BLI)), self._split(self.value(tokens_BLI))
        # Copied once into the order in which every tick reads them.
        return Context(keys_BLhK.transpose(1, 2).contiguous(), values_BLhK.transpose(1, 2).contiguous())

    def forward(self, query_BI: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """What the query finds, [B, I], and how it looked for it, [B, h, L] (each head's weights sum to 1)."""
        query_BhK = self._split(self.query(query_BI)) * (query_BI.shape[-1] // self.heads) ** -0.5
        scores_BhL = (query_BhK.unsqueeze(-2) @ context.keys.transpose(-1, -2)).squeeze(-2)
        weights_BhL = scores_BhL.softmax(-1)
        found_BhK = (self.dropout(weights_BhL).unsqueeze(-2) @ context.values).squeeze(-2)
        return self.out(found_BhK.flatten(1)), weights_BhL

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1))
