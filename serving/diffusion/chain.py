"""A chain of reverse steps: each thought looks at a noisy image, and its end takes some of the noise out.

    noise -> thought -> finish -> next image -> thought -> finish -> ... -> image without noise

What happens at the end of a thought is the program's `finish`; here stands what it is told, and what becomes of it.
"""

# Shapes: N rows, H height, W width.

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from serving.chance import Chance
from serving.diffusion.contract import CLEAN, ESTIMATE, ETA, IMAGE, LABEL, LEVEL, NEXT_LEVEL, NOISE
from serving.diffusion.levels import certain_stride, planned_levels
from serving.diffusion.model import DiffusionModel
from serving.diffusion.options import DiffusionOptions
from serving.ending import NEXT
from serving.events import Answer, Summary
from serving.request import Array

_START = 0
"""The link whose numbers are what a row begins with; those of its k-th thought, from 0, are of link k + 1."""


class DiffusionChain:
    """Draws the images of one request. A row's image depends on its label, the seed and the row's number alone.

    Args:
        label_N: the class of each row.
        seed: what all noise is drawn by, in [0, 2^64).
        stride_above: the certainty above which a row may take several steps of the plan at once.
        predictions: whether answers keep their predictions.
    """

    def __init__(
        self,
        model: DiffusionModel,
        options: DiffusionOptions,
        label_N: NDArray[np.int64],
        *,
        seed: int,
        stride_above: float,
        predictions: bool,
    ) -> None:
        rows = len(label_N)
        self._model, self._options, self._seed = model, options, seed
        self._chance = Chance(seed)
        self._stride_above = stride_above
        self._predictions = predictions or options.steps == 1
        self._label_N = label_N
        self._plan = planned_levels(model.levels, options.steps)
        self._places, self._strides = [0] * rows, [1] * rows
        self._image_NHW = np.stack([self._drawn(row, _START) for row in range(rows)])
        self._estimate_NHW = np.zeros_like(self._image_NHW)
        self._fed_back = {spec.name: np.zeros((rows, *spec.shape), spec.dtype) for spec in model.fed_back}

    def begin(self) -> dict[str, Array]:
        """What the first thoughts begin with, [N, ...] each."""
        rows = [self._beginning(row, 0) for row in range(len(self._label_N))]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def follow(self, answer: Answer) -> Mapping[str, Array] | None:
        """Take in a reverse step; see `Chain`. A thought that came to nothing leaves the image as it was."""
        row = answer.row
        if not self._predictions:
            answer.prediction = None
        if answer.finished:
            self._step(row, answer)
        over = bool(answer.chain_end) or not answer.finished or self._places[row] == self._options.steps
        answer.outputs["level"] = np.array(self._plan[self._places[row]], np.int64)
        every = self._options.every
        if over or (every and (answer.link + 1) % every == 0):
            # Copies: the row's next step may come before this one has been sent.
            answer.outputs |= {"image": self._image_NHW[row].copy(), "estimate": self._estimate_NHW[row].copy()}
        return None if over else self._beginning(row, answer.link + 1)

    def finish(self, summary: Summary) -> None:
        """Tell all images, also of rows that ended while a link of theirs waited, and the seed."""
        summary.seed = self._seed
        summary.outputs = {"image": self._image_NHW, "estimate": self._estimate_NHW}

    def noise_share(self, level: int) -> float:
        """A level as a share of all the noise there is, in [0, 1)."""
        return level / self._model.levels

    def _step(self, row: int, answer: Answer) -> None:
        found = answer.finished
        self._image_NHW[row], self._estimate_NHW[row] = found[NEXT + IMAGE], found[ESTIMATE]
        for name, values in self._fed_back.items():
            values[row] = found[NEXT + name]
        self._places[row] = self._after(row)
        # How far the next step goes: its noise and level are chosen before its thought, by the certainty of this one.
        self._strides[row] = certain_stride(answer.certainty, self._stride_above, self._options.stride)

    def _after(self, row: int) -> int:
        """The place in the plan that the row's step leads to."""
        return min(self._places[row] + self._strides[row], self._options.steps)

    def _beginning(self, row: int, link: int) -> dict[str, Array]:
        """What the row's thought begins with, [1, ...] each."""
        eta, next_level = self._options.eta, self._plan[self._after(row)]
        # Without eta a step adds nothing, and neither does the last one.
        adds = eta > 0 and next_level != CLEAN
        return {
            IMAGE: self._image_NHW[row : row + 1].copy(),
            LEVEL: np.array([self._plan[self._places[row]]], np.int64),
            LABEL: self._label_N[row : row + 1],
            **{name: values[row : row + 1].copy() for name, values in self._fed_back.items()},
            NEXT_LEVEL: np.array([next_level], np.int64),
            ETA: np.array([eta], np.float32),
            NOISE: (self._drawn(row, link + 1) if adds else np.zeros(self._model.image.shape, np.float32))[None],
        }

    def _drawn(self, row: int, link: int) -> NDArray[np.float32]:
        """Standard normal, [H, W]."""
        shape = self._model.image.shape
        return self._chance.normal(row, link, int(np.prod(shape))).reshape(shape)
