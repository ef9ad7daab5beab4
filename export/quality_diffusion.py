"""How well a diffusion model denoises images of its task: by tick, by level, and for every certainty threshold."""

# Shapes: N rows, T ticks, S side.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctm.diffusion.images import to_diffusion
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.quality import AbstentionPoint, DiffusionQuality, JudgedNoise, draw_noise, judge_noise, noise_quality
from ctm.frontier import NEVER, THRESHOLDS, stopping
from ctm.servable import servable
from ctm.tasks import Rows, Task
from ctm.tasks.fetch import FetchError
from export.agreement import ROW_COUNTS
from export.errors import ExportError
from export.quality import describe_data, open_task
from export.source import random_values

CANDIDATES = (*(round(0.05 + 0.01 * index, 2) for index in range(95)), 0.995, 0.999, 1.0)
"""Thresholds that may be shipped."""
_LOW_THRESHOLDS = (0.1, 0.2, 0.3, 0.4)
"""Shown besides the usual ones: about a noisy image a thought is seldom certain."""
_BATCH = 250
_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisePoint:
    """How noisy rows fare when each thought stops at its first tick of at least this certainty."""

    threshold: float
    error: float
    """Mean squared error of the noise, guided by the tick that answers."""
    mean_ticks: float
    ticks_deviation: float
    share_certain: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseQuality:
    """Measured on the test split; the threshold was chosen on held-out training rows."""

    found: DiffusionQuality
    """With all ticks thought."""
    frontier: tuple[NoisePoint, ...]
    """What a threshold buys; the shipped one is among them."""
    shipped: NoisePoint
    rule: str
    """How the shipped threshold was chosen: a sentence."""
    abstaining: AbstentionPoint
    """Under both thresholds that ship."""


def measure_on_images(
    model: EnhancedCTMDiffusion,
    settings: Mapping[str, Any],
    data_dir: Path | None,
    *,
    threshold: float | None,
    abstain_below: float,
    max_noise_loss: float,
    rows: int,
    say: Callable[[str], None],
) -> tuple[NoiseQuality, tuple[Tensor, ...], str]:
    """Choose a threshold on held-out images, unless one is given, and measure the model on test images.

    Args:
        settings: of the task, as the checkpoint's config.json holds them.
        max_noise_loss: most that the error may be larger than with all ticks thought, as a share.
        rows: how many held-out images to return.
        say: is told what was found.

    Returns:
        The quality, noisy images to compare artefacts on, and a description of the data.

    Raises:
        ExportError: the task is not known or has no such images, or its data is not to be had.
    """
    try:
        task = open_task(settings, data_dir)
        _check_task(task, model)
        rule = "The threshold was given, not chosen."
        if threshold is None:
            held_out = _judge(model, task.held_out)
            threshold = choose_noise_threshold(held_out, max_noise_loss)
            rule = (
                f"It was chosen on {len(held_out.base):,} training images held out of training: the smallest from "
                f"which on the error there is at most {100 * max_noise_loss:g} % above that with all ticks thought."
            )
        say(f"certainty threshold {threshold:g}; judging {len(task.test):,} test images of {task.name}")
        quality = measure_noise(_judge(model, task.test), model.diffusion.levels, threshold, abstain_below, rule)
        inputs = _noisy(model, task.held_out, min(rows, len(task.held_out)))
    except (FetchError, OSError) as error:
        raise ExportError(f"the task's data: {error}; --without-quality exports without it") from error
    shipped = quality.shipped
    say(
        f"error of the noise {shipped.error:.5f} after {shipped.mean_ticks:.2f} ticks on average, "
        f"{quality.found.base:.5f} without a thought"
    )
    return quality, inputs, describe_data(task)


def choose_noise_threshold(held_out: JudgedNoise, max_noise_loss: float) -> float:
    """The smallest threshold that costs little, and than which no larger one costs more."""
    enough = _point(held_out, NEVER).error * (1 + max_noise_loss)
    chosen = CANDIDATES[-1]
    for threshold in reversed(CANDIDATES):
        if _point(held_out, threshold).error > enough:
            break
        chosen = threshold
    return chosen


def measure_noise(judged: JudgedNoise, levels: int, threshold: float, abstain_below: float, rule: str) -> NoiseQuality:
    """Sum up test images; `threshold` and `abstain_below` are those that are shipped, `rule` says why."""
    found = noise_quality(judged, levels)
    thresholds = sorted({*_LOW_THRESHOLDS, *THRESHOLDS, threshold})
    points = tuple(_point(judged, value) for value in thresholds)
    _, answer_N = stopping(judged.certainty, threshold)
    rows_N = np.arange(len(answer_N))
    abstains_N = judged.certainty[rows_N, answer_N] < abstain_below
    errors_N = np.where(abstains_N, judged.base, judged.guided[rows_N, answer_N])
    return NoiseQuality(
        # Half of what is judged is enough to be shown.
        found=replace(found, abstention=found.abstention[::2]),
        frontier=points,
        shipped=points[thresholds.index(threshold)],
        rule=rule,
        abstaining=AbstentionPoint(
            threshold=abstain_below,
            abstaining=float(abstains_N.mean()),
            error=float(errors_N.mean(dtype=np.float64)),
        ),
    )


def _point(judged: JudgedNoise, threshold: float) -> NoisePoint:
    used_N, answer_N = stopping(judged.certainty, threshold)
    errors_N = judged.guided[np.arange(len(answer_N)), answer_N]
    return NoisePoint(
        threshold=threshold,
        error=float(errors_N.mean(dtype=np.float64)),
        mean_ticks=float(used_N.mean()),
        ticks_deviation=float(used_N.std()),
        share_certain=float((judged.certainty.clip(0, 1).max(axis=1) >= threshold).mean()),
    )


def _check_task(task: Task, model: EnhancedCTMDiffusion) -> None:
    side = model.diffusion.side
    channels, *sides = task.input_shape if len(task.input_shape) == 3 else (0, 0)
    if channels != 1 or any(size % side for size in sides) or len(set(sides)) != 1:
        raise ExportError(
            f"the checkpoint's task, {task.name}, has inputs of shape {task.input_shape}, its model draws images of "
            f"one channel, pooled to {side} x {side} pixels"
        )
    if len(task.held_out) < max(ROW_COUNTS):
        raise ExportError(
            f"the checkpoint's task holds out {len(task.held_out)} training rows, comparing artefacts with the model "
            f"needs at least {max(ROW_COUNTS)}; --without-quality compares on random ones"
        )


def _judge(model: EnhancedCTMDiffusion, rows: Rows) -> JudgedNoise:
    def take(numbers: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = rows.take(numbers)
        return to_diffusion(inputs, model.diffusion.side), targets

    return judge_noise(model, take, torch.arange(len(rows)), batch_size=_BATCH, seed=_SEED)


def _noisy(model: EnhancedCTMDiffusion, held_out: Rows, rows: int) -> tuple[Tensor, ...]:
    """Held-out images at levels of all kinds: the program's inputs, random where a link hands something on."""
    numbers = torch.arange(rows)
    images, labels = held_out.take(numbers)
    clean = to_diffusion(images, model.diffusion.side)
    levels, noise = draw_noise(numbers, clean.shape[1:], model.diffusion.levels, _SEED)
    fed: Sequence[Tensor] = random_values(servable(model).program.inputs[3:], rows)
    return model.schedule.add(clean, noise, levels), levels, labels, *fed
