"""Attention of a thought to its input: keys and values projected once, one query a tick."""

# Shapes: B inputs, Q thoughts about each, N = B * Q, L tokens, I attention width, h heads, K = I / h.

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Context(NamedTuple):
    """Everything of an input that a tick needs; it does not change over ticks."""

    keys: Tensor
    """[B, h, L, K]"""
    values: Tensor
    """[B, h, L, K]"""


class MaskedContext(NamedTuple):
    """A context of which not every query sees everything."""

    keys: Tensor
    """[B, h, L, K]"""
    values: Tensor
    """[B, h, L, K]"""
    hidden: Tensor
    """[Q, L] or [B, Q, L]: true where the q-th query of an input may not look."""


class Attention(nn.Module):
    """Multi-head attention of single queries."""

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

    def forward(self, query_NI: Tensor, context: Context | MaskedContext) -> tuple[Tensor, Tensor]:
        """What each query finds, [N, I], and how it looked for it, [N, h, L] (each head's weights sum to 1).

        There is one query an input. With a mask there may be several, one after the other in the rows.
        """
        query_NhK = self._split(self.query(query_NI)) * (query_NI.shape[-1] // self.heads) ** -0.5
        weights_BhQL = self._scores(query_NhK, context).softmax(-1)
        found_BhQK = self.dropout(weights_BhQL) @ context.values
        found_NhK, weights_NhL = found_BhQK.transpose(1, 2).flatten(0, 1), weights_BhQL.transpose(1, 2).flatten(0, 1)
        return self.out(found_NhK.flatten(1)), weights_NhL

    def _scores(self, query_NhK: Tensor, context: Context | MaskedContext) -> Tensor:
        """[B, h, Q, L]; -inf where a query may not look."""
        keys_BhKL = context.keys.transpose(-1, -2)
        if not isinstance(context, MaskedContext):
            return query_NhK.unsqueeze(-2) @ keys_BhKL
        query_BhQK = torch.unflatten(query_NhK, 0, (context.keys.shape[0], -1)).transpose(1, 2)
        return (query_BhQK @ keys_BhKL).masked_fill(context.hidden.unsqueeze(-3), -math.inf)

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1))
