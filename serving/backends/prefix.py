"""Inputs of which only a prefix counts: where the rest may be cut away before a row is encoded.

A row is cut by its own length alone, never by its company's: a graph's last bits may depend on the size it runs at.
"""

# Shapes: k rows of one admission, C inputs that may be cut.

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from serving.program import Program
from serving.request import Array

Sizes = tuple[int, ...]
"""What the first dimension of each input that may be cut is cut to; empty where there are none."""


@dataclass(frozen=True, slots=True)
class Cut:
    """An input with buckets."""

    name: str
    length: str
    """The input that says how many of its leading entries count."""
    buckets: NDArray[np.int64]
    """Rising; the last is its own size."""

    def sizes(self, lengths_k: Array) -> NDArray[np.int64]:
        """The smallest bucket that holds each of k lengths; the whole input where none does."""
        place_k = np.minimum(np.searchsorted(self.buckets, lengths_k), len(self.buckets) - 1)
        found: NDArray[np.int64] = self.buckets[place_k]
        return found


def cuts(program: Program) -> tuple[Cut, ...]:
    """The inputs of a program that may be cut."""
    lengths = {spec.length_of: spec.name for spec in program.inputs if spec.length_of}
    for spec in program.inputs:
        assert not spec.buckets or spec.name in lengths, f"input {spec.name} has buckets but no length"
    return tuple(
        Cut(spec.name, lengths[spec.name], np.array(spec.buckets, np.int64)) for spec in program.inputs if spec.buckets
    )


def all_sizes(found: Sequence[Cut]) -> list[Sizes]:
    """Every combination of buckets, the smallest first."""
    return list(product(*(cut.buckets.tolist() for cut in found)))


def by_sizes(found: Sequence[Cut], inputs: Mapping[str, Array]) -> Iterator[tuple[Sizes, NDArray[np.intp]]]:
    """The places of the rows that are cut alike, for each of the sizes that are met."""
    sizes_kC = np.stack([cut.sizes(inputs[cut.length]) for cut in found], axis=1)
    for sizes in np.unique(sizes_kC, axis=0):
        yield tuple(sizes.tolist()), (sizes_kC == sizes).all(axis=1).nonzero()[0]
