"""Encoding rows as a server does: inputs of which only a prefix counts are cut to the smallest window that holds it."""

# Shapes: N rows, n rows that are cut alike, C inputs that may be cut.

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ctm.program import Program
from export.artefact import Array, Artefact


def encode_as_served(artefact: Artefact, program: Program, inputs: Sequence[Array]) -> list[Array]:
    """The context, [N, ...], of rows that are cut by their own length and encoded with those that are cut alike."""
    places = [place for place, spec in enumerate(program.inputs) if spec.buckets]
    if not places:
        return artefact.encode(inputs)
    sizes_NC = np.stack([_sizes(program, inputs, place) for place in places], axis=1)
    context: list[Array] = []
    for sizes in np.unique(sizes_NC, axis=0):
        rows_n = (sizes_NC == sizes).all(axis=1).nonzero()[0]
        cut = [values[rows_n] for values in inputs]
        for place, size in zip(places, sizes, strict=True):
            cut[place] = np.ascontiguousarray(cut[place][:, :size])
        found = artefact.encode(cut)
        context = context or [np.empty((len(sizes_NC), *part.shape[1:]), part.dtype) for part in found]
        for whole, part in zip(context, found, strict=True):
            whole[rows_n] = part
    return context


def _sizes(program: Program, inputs: Sequence[Array], place: int) -> NDArray[np.int64]:
    """The smallest window that holds each row of an input, [N]."""
    cut = program.inputs[place]
    length_N = next(value for spec, value in zip(program.inputs, inputs, strict=True) if spec.length_of == cut.name)
    windows = np.array(cut.buckets, np.int64)
    sizes_N: NDArray[np.int64] = windows[np.searchsorted(windows, length_N)]
    return sizes_N
