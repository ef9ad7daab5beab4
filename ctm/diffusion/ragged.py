"""Rows of unequally many patches as one batch: flattened, all real patches one after the other, or padded.

    flattened   [R, E]      R = sum of the rows' patches; what is done patch by patch is done to real ones alone
    padded      [N, M, E]   room for the most patches that a row can have; shapes do not hang on the data

What is told to a row (a level, a class, a thought) is flattened along: each patch is told what its row is told.
Attention stays within a row: `rows` lays patches out by row, by a gather, and `back` flattens them again. Both forms
give the same numbers. Flattened is for training, padded for programs, whose graphs cannot have sizes made of data.
"""

# Shapes: N rows, B bytes, M room for patches, R real patches of all rows, E width; ... is R or N, M.

from typing import Protocol

import torch
from torch import Tensor

from ctm.diffusion.patch_vectors import spread
from ctm.diffusion.patches import Patches


class Layout(Protocol):
    """How patches of rows lie in tensors."""

    hidden: Tensor
    """[N, M] true where a row has no such patch."""
    lengths: Tensor
    """[...] bytes of each patch."""

    def pool(self, x_NBE: Tensor) -> Tensor:
        """Of each patch the mean over its bytes, [..., E]."""
        ...

    def spread(self, x: Tensor) -> Tensor:
        """[N, B, E]: to each byte what belongs to its patch."""
        ...

    def told(self, x_NE: Tensor) -> Tensor:
        """To each patch what its row is told, broadcast against [..., E]."""
        ...

    def rows(self, x: Tensor) -> Tensor:
        """[N, M, E], by row."""
        ...

    def back(self, x_NME: Tensor) -> Tensor:
        """The opposite of `rows`."""
        ...


class Padded:
    """Rows of patches with room for the most."""

    def __init__(self, patches: Patches) -> None:
        self.which, self.lengths = patches.which, patches.lengths
        self.hidden = self.lengths == 0

    def pool(self, x_NBE: Tensor) -> Tensor:
        none_NME = x_NBE.new_zeros(1).float().expand(*self.lengths.shape, x_NBE.shape[-1])
        sums_NME = none_NME.scatter_add(1, self.which[..., None].expand_as(x_NBE), x_NBE.float())
        return sums_NME / self.lengths.clamp(min=1)[..., None]

    def spread(self, x: Tensor) -> Tensor:
        return spread(x, self.which)

    def told(self, x_NE: Tensor) -> Tensor:
        return x_NE.unsqueeze(1)

    def rows(self, x: Tensor) -> Tensor:
        return x

    def back(self, x_NME: Tensor) -> Tensor:
        return x_NME


class Flattened:
    """All rows' real patches in one line."""

    def __init__(self, patches: Patches) -> None:
        self.hidden = patches.lengths == 0
        first_N = patches.counts.cumsum(0) - patches.counts
        self.lengths = patches.lengths[~self.hidden]
        self.byte_NB = patches.which + first_N[:, None]
        """The patch of each byte, of all rows' patches."""
        place_M = torch.arange(patches.lengths.shape[1], device=first_N.device)
        self.of_NM = (first_N[:, None] + place_M).clamp(max=len(self.lengths) - 1)
        """Which patch stands where in which row; any where there is none."""
        self.row_R = (~self.hidden).nonzero()[:, 0]

    def pool(self, x_NBE: Tensor) -> Tensor:
        none_RE = x_NBE.new_zeros(len(self.lengths), x_NBE.shape[-1]).float()
        sums_RE = none_RE.index_add(0, self.byte_NB.flatten(), x_NBE.flatten(0, 1).float())
        return sums_RE / self.lengths[:, None]

    def spread(self, x: Tensor) -> Tensor:
        return x[self.byte_NB]

    def told(self, x_NE: Tensor) -> Tensor:
        return x_NE[self.row_R]

    def rows(self, x: Tensor) -> Tensor:
        return x[self.of_NM]

    def back(self, x_NME: Tensor) -> Tensor:
        return x_NME[~self.hidden]
