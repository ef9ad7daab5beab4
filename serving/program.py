"""What the engine must know of a model: named tensors and a start state. It knows no CTM."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from serving.request import Array


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A named tensor; its shape never holds the row dimension."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    minimum: float | None = None
    maximum: float | None = None
    length_of: str = ""
    """Of an input: this whole number, one a row, says how many leading entries of that other input count."""
    buckets: tuple[int, ...] = ()
    """Of an input with a length: sizes that its first dimension may be cut to, rising to its own."""
    values: tuple[float, ...] = ()
    """Of an input: the only values that mean anything; empty: all do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    """What happens when a thought ends: the arguments and results of its graph, in order."""

    arguments: tuple[TensorSpec, ...]
    """What the thought began with, what the tick that answers gave, and whether the row abstained."""
    results: tuple[TensorSpec, ...]
    given: tuple[TensorSpec, ...]
    """Of the arguments, those that are no input: whoever makes the links gives them along with the inputs."""
    abstained: str
    """The argument that says whether the row abstained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """The graphs' arguments and results, in order, and what the engine reads of them."""

    inputs: tuple[TensorSpec, ...]
    context: tuple[TensorSpec, ...]
    state: tuple[TensorSpec, ...]
    start: Mapping[str, Array]
    """The start value of every state tensor, without the row dimension."""
    prediction: TensorSpec
    certainty: TensorSpec
    energy: TensorSpec | None = None
    done: TensorSpec | None = None
    details: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = field(default=())
    """All of a tick's results but the next state, in the graph's order."""
    finish: Finish | None = None

    @property
    def beginning(self) -> tuple[TensorSpec, ...]:
        """What a thought begins with: the inputs, and what `finish` needs to be given besides."""
        return (*self.inputs, *self.finish.given) if self.finish else self.inputs

    @property
    def positions(self) -> int:
        """Of a structured prediction; its last dimension is the classes."""
        return prod(self.prediction.shape[:-1])


def top(prediction: Array) -> NDArray[np.int64]:
    """The best class at each position, [n, P], of predictions [n, ..., classes]."""
    best: NDArray[np.int64] = prediction.argmax(axis=-1).reshape(len(prediction), -1)
    return best
