"""All chance of a run as a function of its seed: the order of the rows, and the random numbers of each update.

Nothing here remembers anything, so a run resumed at update k draws what the run that was never interrupted draws.
"""

from enum import IntEnum

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor

from ctm.training.settings import ConfigError


class Purpose(IntEnum):
    """What a random number is for: different purposes never share a stream."""

    WEIGHTS = 0
    PAIRS = 1
    ORDER = 2
    AUGMENT = 3
    FORWARD = 4


def derived_seed(seed: int, purpose: Purpose, *numbers: int) -> int:
    """A seed in [0, 2**32) for one purpose and, say, one update."""
    return int(np.random.SeedSequence([seed, purpose, *numbers]).generate_state(1)[0])


def generator(seed: int, purpose: Purpose, *numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *numbers))


def seed_everything(seed: int, purpose: Purpose, *numbers: int) -> None:
    """Set the global generators of Python, numpy and torch, every device's included."""
    set_seed(derived_seed(seed, purpose, *numbers))


class RowOrder:
    """Which rows each update learns from: every epoch is a permutation of its own, cut into batches.

    The rows that do not fill a batch at the end of an epoch are left out of that epoch.
    """

    def __init__(self, seed: int, rows: int, batch_size: int) -> None:
        if batch_size > rows:
            raise ConfigError(f"batch_size must be at most the {rows} rows of the training set, got {batch_size}")
        self._seed, self._rows, self._batch_size = seed, rows, batch_size
        self.batches = rows // batch_size
        """Updates in an epoch."""
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def indices(self, update: int) -> Tensor:
        """Row numbers of one update, int64 [batch_size]."""
        epoch, batch = divmod(update, self.batches)
        if epoch != self._epoch:
            # Kept only because making it for every update would be slow.
            self._permutation = torch.randperm(self._rows, generator=generator(self._seed, Purpose.ORDER, epoch))
            self._epoch = epoch
        return self._permutation[batch * self._batch_size : (batch + 1) * self._batch_size]
