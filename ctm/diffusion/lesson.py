"""What an update of a diffusion model learns from, and what comes of it, so that rows may be taken in parts."""

# Shapes: N rows, S side.

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ctm.diffusion.config import LossWeights
from ctm.diffusion.control import Controlled
from ctm.diffusion.denoiser import Guide


class DiffusionLoss(NamedTuple):
    """What is descended, and its parts; scalars but for `tick`."""

    value: Tensor
    guided: Tensor
    """Mean squared error of the guided rows' prediction; 0 if there are none."""
    base: Tensor
    """Of the rows without a thought; 0 if there are none."""
    right: Tensor
    """Share of pixels whose bin the thought has right at its most certain tick."""
    tick: Tensor
    """[N] that tick, from 0."""
    losses: Mapping[str, Tensor]
    """What is descended beside the denoiser's error, unweighted, by the name of its weight."""


class Lesson(NamedTuple):
    """Rows, and all that chance has to say about them."""

    clean: Tensor
    """[N, S, S] in [-1, 1]"""
    label: Tensor
    level: Tensor
    noise: Tensor
    """[N, S, S]"""
    noisy: Tensor
    """[N, S, S]"""
    target: Tensor
    """[N, S, S] what the denoiser should predict."""
    tried: Tensor
    """[N] true where the thought is handed what a first attempt gives."""
    alone: Tensor
    """[N] true for rows that are denoised without their thought."""
    tick: Tensor
    """[N] a tick drawn at random."""
    by_drawn: Tensor
    """[N] true where that tick guides, not the most certain one."""
    other_level: Tensor
    """[N] of the other thought."""
    watches: Tensor
    """[N] true for rows that are told of it."""
    stretches: Tensor
    """[N, ...] numbers in [0, 1): which stretches of tokens are told from which; none of each row without JEPA."""

    def parts(self, count: int) -> "list[Lesson]":
        """The rows in at most so many parts, nearly equal ones."""
        return [Lesson(*fields) for fields in zip(*(field.tensor_split(count) for field in self), strict=True)]


class Task(NamedTuple):
    """What the denoiser is given of some rows."""

    noisy: Tensor
    level: Tensor
    label: Tensor
    guide: Guide


class Told(NamedTuple):
    """What the thoughts of some rows came to, before the denoiser."""

    lesson: Lesson
    task: Task
    """Where the denoiser is."""
    losses: Mapping[str, Tensor]
    """Scalars."""
    right: Tensor
    """Scalar."""
    tick: Tensor
    """[N] the most certain one, from 0."""
    controlled: Controlled
    other_estimate: Tensor | None
    """[N, S, S] what the other thought took for the clean image."""


class Learned(NamedTuple):
    """What some rows have to teach."""

    error: Tensor
    """[N] squared, of the denoiser."""
    losses: Mapping[str, Tensor]
    """Scalars, all of them."""
    right: Tensor
    """Scalar."""
    tick: Tensor
    """[N]"""


def joined(parts: Sequence[Learned], alone_N: Tensor, weights: LossWeights) -> DiffusionLoss:
    """The loss of all rows from their parts'; each part counts by its rows."""
    error_N = torch.cat([part.error for part in parts])
    shares = [len(part.tick) / len(alone_N) for part in parts]

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum()

    losses = {name: mean([part.losses[name] for part in parts]) for name in parts[0].losses}
    value = error_N.mean() + sum(weights.of(name) * loss for name, loss in losses.items())
    guided, base = _mean(error_N, ~alone_N), _mean(error_N, alone_N)
    right, tick_N = mean([part.right for part in parts]), torch.cat([part.tick for part in parts])
    return DiffusionLoss(value, guided, base, right, tick_N, losses)


def _mean(values_N: Tensor, mask_N: Tensor) -> Tensor:
    """Of the chosen rows, 0 if there are none."""
    return (values_N.detach() * mask_N).sum() / mask_N.sum().clamp(min=1)
