"""What sums of pair products are divided by, as tables: for rows that are at different places of their thoughts.

root beta of n products = sqrt(1 + keep + keep² + … + keep^(n - 1))
"""

# Shapes: P pairs, A / O action / out pairs, n rows of a table.

from typing import NamedTuple

import torch
from torch import Tensor

from ctm.sync import Synchronisation


class RootBetas(NamedTuple):
    """What a tick divides its sums by, picked by the row's own counter."""

    action: Tensor
    """[n, A]"""
    out: Tensor
    """[n, O]"""


def root_betas(sync: Synchronisation, terms: int) -> Tensor:
    """Those of 1 to `terms` products, [terms, P], in the graph, so that decays learn through them."""
    keep_P = sync.keep()
    return (keep_P ** torch.arange(terms, device=keep_P.device)[:, None]).cumsum(0).sqrt()
