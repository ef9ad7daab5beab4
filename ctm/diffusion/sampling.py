"""Sampling: from noise to an image in a number of reverse steps, each with a thought of its own.

    x = noise;  for level, next: think until certain;  abstain where it is not certain enough;  x = reverse step

This is what a server does link by link, as one function for whole batches; the tests hold the two together.
"""

# Shapes: N rows, S side, R reverse steps, T ticks.

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ctm.diffusion.denoiser import Guide
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.reverse import CLEAN, clipped, reverse_step, spaced_levels
from ctm.diffusion.senses import Fed


class Samples(NamedTuple):
    """Images, and how they came about."""

    images: Tensor
    """[N, S, S] in [-1, 1]"""
    estimates: Tensor
    """[R, N, S, S] what each step took for the clean image."""
    certainties: Tensor
    """[R, N] of the tick that answered."""
    abstained: Tensor
    """[R, N] truth values."""
    ticks_used: Tensor
    """[R, N]"""


@torch.no_grad()
def sample(
    model: EnhancedCTMDiffusion,
    label_N: Tensor,
    noise: Callable[[int], Tensor],
    *,
    steps: int,
    eta: float = 0.0,
    certainty_threshold: float = 1.01,
    confidence_threshold: float | None = None,
) -> Samples:
    """One image a label.

    Args:
        noise: of a number, standard normal [N, S, S]: 0 is what sampling begins with, k what step k adds.
        steps: reverse steps, at most the model's levels.
        eta: 0 is deterministic (DDIM), 1 ancestral (DDPM).
        certainty_threshold: a thought ends at the first tick that is so certain; above 1, none does. It ends too where
            the thinker itself says so.
        confidence_threshold: the model's own unless given.

    Raises:
        ValueError: steps, eta or a threshold is out of range; names it.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    threshold = model.diffusion.confidence_threshold if confidence_threshold is None else confidence_threshold
    if not 0 <= threshold <= 1:
        raise ValueError(f"confidence_threshold must be in [0, 1], got {threshold}")
    levels = [*map(int, spaced_levels(model.diffusion.levels, steps)), CLEAN]
    image, eta_N = noise(0), torch.full(label_N.shape, eta, device=label_N.device)
    fed = model.nothing_fed(image)
    seen: list[tuple[Tensor, ...]] = []
    for step, (level, following) in enumerate(pairwise(levels), start=1):
        level_N, next_N = torch.full_like(label_N, level), torch.full_like(label_N, following)
        guide, certainty_N, abstains_N, ticks_N = _guide(
            model, image, level_N, label_N, fed, certainty_threshold, threshold
        )
        predicted = model.denoise(image, level_N, label_N, guide)
        parts = model.schedule.take_apart(image, predicted, level_N, model.diffusion.target)
        parts = clipped(model.schedule, parts, level_N)
        fed = model.hand_on(parts)
        # The last step adds nothing.
        fresh = noise(step) if following != CLEAN else torch.zeros_like(image)
        image = reverse_step(model.schedule, parts, level_N, next_N, fresh, eta_N)
        seen.append((parts.clean, certainty_N, abstains_N, ticks_N))
    return Samples(image, *(torch.stack(kept) for kept in zip(*seen, strict=True)))


def _guide(
    model: EnhancedCTMDiffusion,
    image: Tensor,
    level_N: Tensor,
    label_N: Tensor,
    fed: Fed,
    certain: float,
    threshold: float,
) -> tuple[Guide | None, Tensor, Tensor, Tensor]:
    if model.thinker is None:
        nothing = torch.zeros(len(image), device=image.device)
        return None, nothing, nothing > 0, nothing.long()
    thought = model.think(image, level_N, label_N, fed)
    certainty_NT = thought.certainties.clamp(0, 1)
    reached_NT = certainty_NT >= certain
    if thought.done is not None:
        reached_NT = reached_NT | (thought.done > 0.5)
    ticks = certainty_NT.shape[1]
    used_N = torch.where(reached_NT.any(-1), reached_NT.int().argmax(-1) + 1, ticks)
    # The most certain tick of those that ran.
    ran_NT = torch.arange(ticks, device=image.device) < used_N[:, None]
    answer_N = certainty_NT.masked_fill(~ran_NT, -1.0).argmax(-1)
    here = torch.arange(len(image), device=image.device)
    certainty_N = certainty_NT[here, answer_N]
    abstains_N = certainty_N < threshold
    state = model.control(thought.states[here, answer_N], certainty_N).state
    guide = model.guide(thought.predictions[here, answer_N], certainty_N, state, abstains_N)
    return guide, certainty_N, abstains_N, used_N
