"""Cumulative parity of a sequence of 1 and -1: at every position, is the count of -1 so far even or odd?

A task from the paper (arXiv 2505.05522, section on parity): nothing but thinking along the sequence solves it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctm.tasks.config import TaskConfig
from ctm.tasks.task import Batch, Task

SHARES = {"train": (2, 8), "held_out": (0, 1), "test": (1, 2)}
"""Which of eight equal shares of all sequences each part has: first, and one after the last."""
_ATTEMPT = np.uint64(1) << np.uint64(40)
"""From one attempt's counters to the next one's; more than all rows have signs."""


class GeneratedRows:
    """Sequences made from their own number, so that a row is the same whenever and in whatever company it is asked.

    A short sequence comes up many times over. Which part it belongs to is said by the sequence itself, not by its
    number, so that nothing of a held-out or a test sequence is ever learned from.
    """

    def __init__(self, part: str, count: int, length: int) -> None:
        """`part` is one of `SHARES`."""
        self._first, self._end = (np.uint64(share) for share in SHARES[part])
        self._count, self._length = count, length

    def __len__(self) -> int:
        return self._count

    def take(self, indices: Tensor) -> Batch:
        counters = indices.numpy().astype(np.uint64) * np.uint64(self._length)
        minus = self._draw(counters)
        while (others := np.flatnonzero(~self._are_ours(minus))).size:
            counters[others] += _ATTEMPT
            minus[others] = self._draw(counters[others])
        drawn = torch.from_numpy(minus)
        return Batch((1 - 2 * drawn).to(torch.float32), drawn.cumsum(dim=1) % 2)

    def _draw(self, counters: NDArray[np.uint64]) -> NDArray[np.int64]:
        places = np.arange(self._length, dtype=np.uint64)
        return (_mixed(counters[:, None] + places) >> np.uint64(63)).astype(np.int64)

    def _are_ours(self, minus: NDArray[np.int64]) -> NDArray[np.bool_]:
        share = share_of(minus)
        return (share >= self._first) & (share < self._end)


def share_of(minus: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Which of the eight shares each sequence belongs to, [B], for signs [B, length], 1 where they are minus."""
    digest = np.zeros(len(minus), np.uint64)
    for bits in minus.T.astype(np.uint64):
        digest = _mixed(digest ^ bits)
    return digest >> np.uint64(61)


def parity_task(config: TaskConfig) -> Task:
    options = config.parity
    return Task(
        name="parity",
        loss="parity",
        input_name="sequence",
        input_shape=(options.length,),
        prediction_shape=(options.length, 2),
        labels=("even", "odd"),
        train=GeneratedRows("train", options.train_rows, options.length),
        held_out=GeneratedRows("held_out", options.held_out_rows, options.length),
        test=GeneratedRows("test", options.test_rows, options.length),
    )


def _mixed(counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random bits for each counter: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    mixed = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
