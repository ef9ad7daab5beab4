"""What every task offers: labelled rows in three parts, and the shape of the prediction that answers one row.

The model learns from `train`. `held_out` is never learned from: it is watched while training, and thresholds are
chosen on it. `test` is read once, at the end, for the numbers that are published.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LossName = Literal["image", "parity", "maze", "language"]


class Batch(NamedTuple):
    """Some rows of a task."""

    inputs: Tensor
    """[rows, *input_shape], in the natural unit of the task: float32, pixels in [0, 1]; int64 for tokens."""
    targets: Tensor
    """int64 [rows] for one label a row, [rows, positions] for one at every position."""


class Rows(Protocol):
    """A numbered collection of labelled rows, read by number."""

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> Batch:
        """The rows of these numbers, int64 [rows], in this order."""
        ...


class TensorRows:
    """Rows that are held in memory."""

    def __init__(self, inputs: Tensor, targets: Tensor, scale: float = 1.0) -> None:
        """Keep the rows as they are.

        Args:
            scale: what one unit of `inputs` is worth: 1/255 lets pixels stay bytes until they are taken.
        """
        assert len(inputs) == len(targets), "every row has one target"
        self._inputs, self._targets, self._scale = inputs, targets, scale

    def __len__(self) -> int:
        return len(self._targets)

    def take(self, indices: Tensor) -> Batch:
        return Batch(self._inputs[indices].to(torch.float32) * self._scale, self._targets[indices].to(torch.int64))


class LazyRows:
    """Rows that are read when they are first asked for, so that a test set rests untouched until it is wanted."""

    def __init__(self, read: Callable[[], Rows]) -> None:
        self._read = read

    @cached_property
    def _rows(self) -> Rows:
        return self._read()

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, indices: Tensor) -> Batch:
        return self._rows.take(indices)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One thing to learn: its rows, its labels, and how a prediction is judged."""

    name: str
    loss: LossName
    input_name: str
    """What a served model calls its input."""
    input_shape: tuple[int, ...]
    """Of one row."""
    prediction_shape: tuple[int, ...]
    """Of one row; the last dimension runs over `labels`, those before it over positions."""
    labels: tuple[str, ...]
    """Empty where they stand elsewhere: the names of tokens are in their tokenizer."""
    train: Rows
    held_out: Rows
    test: Rows
    padding: int | None = None
    """The label that fills up an answer shorter than its positions; None where every position counts."""
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    """Makes fresh variants of training inputs; None when the rows are learned from as they are."""
    token_bytes: NDArray[np.int64] | None = None
    """Of text: how many bytes each token of the vocabulary stands for."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts that a checkpoint carries along by the name of their file, such as a tokenizer."""

    def __post_init__(self) -> None:
        assert len(self.labels) in (0, self.prediction_shape[-1]), "a prediction's last dimension runs over the labels"


def batches(rows: Rows, batch_size: int) -> Iterator[Batch]:
    """All rows in order, `batch_size` at a time; the last batch holds what is left."""
    for first in range(0, len(rows), batch_size):
        yield rows.take(torch.arange(first, min(first + batch_size, len(rows))))
