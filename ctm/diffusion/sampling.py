"""Sampling: from noise to an image in a number of reverse steps, each with a thought of its own.

    x = noise;  for level, next: think until certain;  abstain where it is not certain enough;  x = reverse step

This is what a server does link by link, as one function for whole batches; the tests hold the two together.
"""

# Shapes: N rows, S side, R reverse steps, T ticks.

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ctm.diffusion.denoiser import Guide
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.reverse import CLEAN, certain_stride, clipped, reverse_step, spaced_levels
from ctm.diffusion.senses import Fed


class Samples(NamedTuple):
    """Images, and how they came about; of a row that was done before step R, zeros and its last estimate."""

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
    steps: Tensor
    """[N] reverse steps that each row took; R is the most."""


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
    stride: int = 1,
) -> Samples:
    """One image a label.

    Args:
        noise: of a number, standard normal [N, S, S]: 0 is what sampling begins with, k what step k adds.
        steps: reverse steps planned, at most the model's levels.
        eta: 0 is deterministic (DDIM), 1 ancestral (DDPM).
        certainty_threshold: a thought ends at the first tick that is so certain; above 1, none does. It ends too where
            the thinker itself says so.
        confidence_threshold: the model's own unless given.
        stride: planned steps that a row may take at once: its first step takes one, each later one as many as the
            certainty of the thought before it, above `confidence_threshold`, allows; see `certain_stride`.

    Raises:
        ValueError: steps, eta, stride or a threshold is out of range, a label is no class, or noise has another shape;
            names it.
    """
    threshold = model.diffusion.confidence_threshold if confidence_threshold is None else confidence_threshold
    _check(eta, stride, threshold)
    plan = torch.tensor([*spaced_levels(model.diffusion.levels, steps), CLEAN], device=label_N.device)
    image = noise(0)
    _check_rows(model, label_N, image)
    eta_N, place_N, stride_N = torch.full(label_N.shape, eta, device=label_N.device), label_N * 0, label_N * 0 + 1
    fed, used_N = model.nothing_fed(image), torch.zeros_like(label_N)
    estimate, seen = torch.zeros_like(image), list[tuple[Tensor, ...]]()
    # Rows that are done leave the batch; the others are named by their numbers.
    while len(on := (place_N < steps).nonzero().squeeze(-1)):
        here, level_n, label_n = image[on], plan[place_N[on]], label_N[on]
        next_n = (place_N[on] + stride_N[on]).clamp(max=steps)
        handed = {name: value[on] for name, value in fed.items()}
        guide, state, *told = _guide(model, here, level_n, label_n, handed, certainty_threshold, threshold)
        predicted = model.denoise(here, level_n, label_n, guide)
        parts = model.schedule.take_apart(here, predicted, level_n, model.diffusion.target)
        parts = clipped(model.schedule, parts, level_n)
        # The last step adds nothing.
        fresh = noise(len(seen) + 1)[on] if (next_n < steps).any() else torch.zeros_like(here)
        stepped = reverse_step(model.schedule, parts, level_n, plan[next_n], fresh, eta_N[on])
        image, estimate = image.index_copy(0, on, stepped), estimate.index_copy(0, on, parts.clean)
        fed = {name: fed[name].index_copy(0, on, value) for name, value in model.hand_on(parts, state).items()}
        place_N, used_N = place_N.index_copy(0, on, next_n), used_N.index_add(0, on, torch.ones_like(on))
        strides = [certain_stride(certainty, threshold, stride) for certainty in told[0].tolist()]
        stride_N = stride_N.index_copy(0, on, torch.tensor(strides, device=on.device))
        seen.append((estimate, *(value.new_zeros(label_N.shape).index_copy(0, on, value) for value in told)))
    estimates, certainties, abstained, ticks_used = (torch.stack(kept) for kept in zip(*seen, strict=True))
    return Samples(image, estimates, certainties, abstained, ticks_used, used_N)


def _check(eta: float, stride: int, threshold: float) -> None:
    """Raise ValueError for what is out of range."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"confidence_threshold must be in [0, 1], got {threshold}")


def _check_rows(model: EnhancedCTMDiffusion, label_N: Tensor, image: Tensor) -> None:
    """Raise ValueError for classes that there are not, and for noise that is not of one image a label."""
    classes, shape = model.diffusion.classes, [len(label_N), model.diffusion.side, model.diffusion.side]
    if wrong := [label for label in label_N.tolist() if not 0 <= label < classes]:
        raise ValueError(f"labels must be classes, 0 to {classes - 1}, got {wrong[0]}")
    if list(image.shape) != shape:
        raise ValueError(f"noise must be {shape}, an image a label, got {list(image.shape)}")


def _guide(
    model: EnhancedCTMDiffusion,
    image: Tensor,
    level_N: Tensor,
    label_N: Tensor,
    fed: Fed,
    certain: float,
    threshold: float,
) -> tuple[Guide | None, Tensor | None, Tensor, Tensor, Tensor]:
    if model.thinker is None:
        nothing = torch.zeros(len(image), device=image.device)
        return None, None, nothing, nothing > 0, nothing.long()
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
    certainty_N, state = certainty_NT[here, answer_N], thought.states[here, answer_N]
    abstains_N = certainty_N < threshold
    controlled = model.control(state, certainty_N, level_N, fed).state
    guide = model.guide(thought.predictions[here, answer_N], certainty_N, controlled, abstains_N)
    return guide, state, certainty_N, abstains_N, used_N
