"""What every task offers: labelled rows in three parts, and the shape of the prediction that answers one row.

The model learns from `train`. `held_out` is never learned from: it is watched while training, and thresholds are
chosen on it. `test` is read once, at the end, for the numbers that are published.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

LossName = Literal["image", "parity"]


class Batch(NamedTuple):
    """Some rows of a task."""

    inputs: Tensor
    """float32 [rows, *input_shape], in the natural unit of the task: pixels are in [0, 1]."""
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
    train: Rows
    held_out: Rows
    test: Rows
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    """Makes fresh variants of training inputs; None when the rows are learned from as they are."""

    def __post_init__(self) -> None:
        assert self.prediction_shape[-1] == len(self.labels), "the last dimension of a prediction runs over the labels"


def batches(rows: Rows, batch_size: int) -> Iterator[Batch]:
    """All rows in order, `batch_size` at a time; the last batch holds what is left."""
    for first in range(0, len(rows), batch_size):
        yield rows.take(torch.arange(first, min(first + batch_size, len(rows))))
