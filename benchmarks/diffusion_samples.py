"""Samples of a diffusion model, judged: are they the digits that were asked for, do they look like held-out ones?"""

# Shapes: N rows, R reverse steps, S side, F features.

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ctm.diffusion.digit_judge import DigitJudge, judge_images, recognised
from ctm.diffusion.frechet import frechet_distance
from ctm.diffusion.images import to_pixels
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.sampling import Samples, sample

NEVER = 1.01
"""A certainty that no thought reaches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How samples are drawn."""

    steps: int
    eta: float
    certainty_threshold: float = NEVER
    confidence_threshold: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedSamples:
    """What the judge finds in samples that were drawn in one way."""

    setting: Setting
    abstaining: float
    """Share of all rows' reverse steps."""
    abstaining_by_step: list[float]
    """The same at each reverse step, the noisiest first."""
    mean_ticks: float
    """Of a thought."""
    recognised: float
    """Share of the samples that show the digit that was asked for."""
    confidence: float
    """Mean probability of that digit."""
    distance: float
    """Fréchet distance of the judge's features from those of held-out digits."""


def labels_of(rows: int, classes: int) -> Tensor:
    """As many of each class, or one more of the first."""
    return torch.arange(rows) % classes


def noise_of(rows: Tensor, side: int, seed: int) -> Callable[[int], Tensor]:
    """The noise of each row and reverse step by their numbers and the seed alone: the same for every model."""

    def draw(step: int) -> Tensor:
        drawn = [
            np.random.default_rng((seed, step, row)).standard_normal((side, side), np.float32) for row in rows.tolist()
        ]
        return torch.from_numpy(np.stack(drawn))

    return draw


def draw_samples(
    model: EnhancedCTMDiffusion, labels_N: Tensor, setting: Setting, *, seed: int, batch_size: int = 250
) -> Samples:
    """One sample a label."""
    drawn = [
        sample(
            model,
            labels_N[rows],
            noise_of(rows, model.diffusion.side, seed),
            steps=setting.steps,
            eta=setting.eta,
            certainty_threshold=setting.certainty_threshold,
            confidence_threshold=setting.confidence_threshold,
        )
        for rows in torch.split(torch.arange(len(labels_N)), batch_size)
    ]
    images, estimates, certainties, abstained, ticks_used, steps = zip(*drawn, strict=True)
    return Samples(
        images=torch.cat(images),
        estimates=torch.cat(estimates, dim=1),
        certainties=torch.cat(certainties, dim=1),
        abstained=torch.cat(abstained, dim=1),
        ticks_used=torch.cat(ticks_used, dim=1),
        steps=torch.cat(steps),
    )


def judge_samples(
    samples: Samples, labels_N: Tensor, setting: Setting, judge: DigitJudge, features_NF: Tensor
) -> JudgedSamples:
    """Compare samples with what was asked for, and with as many held-out digits' features."""
    verdict = judge_images(judge, to_pixels(samples.images))
    found = recognised(verdict.logits, labels_N)
    return JudgedSamples(
        setting=setting,
        abstaining=samples.abstained.double().mean().item(),
        abstaining_by_step=samples.abstained.double().mean(1).tolist(),
        mean_ticks=samples.ticks_used.double().mean().item(),
        recognised=found.share,
        confidence=found.confidence,
        distance=frechet_distance(verdict.features, features_NF),
    )


def settings_to_try(free: Samples, steps: int, eta: float, shares: Sequence[float]) -> list[Setting]:
    """Thresholds below which about these shares of the row-steps were, when nobody abstained."""
    certainties = free.certainties.flatten().double()
    return [
        Setting(steps=steps, eta=eta, confidence_threshold=round(torch.quantile(certainties, share).item(), 4))
        for share in shares
    ]
