"""What updates show of themselves, and its mean over the updates since the last report."""

import time
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ctm.training.config import RunConfig


class Measured(NamedTuple):
    """What one update showed of itself, in this process; scalars on the device."""

    loss: Tensor
    accuracy: Tensor
    """At the most certain tick."""
    answer_tick: Tensor
    """Mean of the most certain tick, counted from 1."""
    gradient_norm: Tensor
    """Before clipping, over all processes."""


class Window:
    """Means over the updates since the last report."""

    def __init__(self, accelerator: Accelerator, config: RunConfig) -> None:
        self._accelerator = accelerator
        # About a text there is a thought for every token.
        thoughts_a_row = 1 if config.language is None else config.task.text.length
        self._thoughts, self._ticks = config.batch_size * thoughts_a_row, config.model.ticks
        self._open()

    def _open(self) -> None:
        self._sum: Tensor | None = None
        self._updates = 0
        self._began = time.monotonic()

    def add(self, measured: Measured) -> None:
        stacked = torch.stack(measured)
        self._sum = stacked if self._sum is None else self._sum + stacked
        self._updates += 1

    def close(self, rate: float, epoch: float) -> dict[str, float]:
        """The means over all processes; the next window begins."""
        assert self._sum is not None, "a window is closed after an update"
        means: Tensor = self._accelerator.reduce(self._sum / self._updates, reduction="mean")
        scalars = dict(zip(Measured._fields, means.tolist(), strict=True))
        seconds = time.monotonic() - self._began
        scalars["ticks_per_second"] = self._updates * self._thoughts * self._ticks / seconds
        scalars["learning_rate"], scalars["epoch"] = rate, epoch
        self._open()
        return scalars
