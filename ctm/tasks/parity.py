"""Cumulative parity of a sequence of 1 and -1: at every position, is the count of -1 so far even or odd?

A task from the paper (arXiv 2505.05522, section on parity): nothing but thinking along the sequence solves it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctm.tasks.config import TaskConfig
from ctm.tasks.task import Batch, Task


class GeneratedRows:
    """Sequences made from their own number, so that a row is the same whenever and in whatever company it is asked."""

    def __init__(self, first: int, count: int, length: int) -> None:
        self._first, self._count, self._length = first, count, length

    def __len__(self) -> int:
        return self._count

    def take(self, indices: Tensor) -> Batch:
        numbers = indices.numpy().astype(np.uint64) + np.uint64(self._first)
        places = np.arange(self._length, dtype=np.uint64)
        minus = torch.from_numpy(_random_bits(numbers[:, None] * np.uint64(self._length) + places))
        return Batch((1 - 2 * minus).to(torch.float32), minus.cumsum(dim=1) % 2)


def parity_task(config: TaskConfig) -> Task:
    options = config.parity
    held_out_first = options.train_rows
    test_first = held_out_first + options.held_out_rows
    return Task(
        name="parity",
        loss="parity",
        input_name="sequence",
        input_shape=(options.length,),
        prediction_shape=(options.length, 2),
        labels=("even", "odd"),
        train=GeneratedRows(0, options.train_rows, options.length),
        held_out=GeneratedRows(held_out_first, options.held_out_rows, options.length),
        test=GeneratedRows(test_first, options.test_rows, options.length),
    )


def _random_bits(counters: NDArray[np.uint64]) -> NDArray[np.int64]:
    """One random bit for each counter: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), its highest bit."""
    mixed = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(63)).astype(np.int64)
