"""How well a diffusion model denoises: its error with and without its thought, by tick, by level and by threshold.

Every row is made noisy once, at a level and with noise that depend on the seed and the row's number alone, so that all
models are judged on the same.
"""

# Shapes: N rows, T ticks, S side.

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctm.diffusion.model import EnhancedCTMDiffusion

LEVEL_GROUPS = 5
_GOLDEN = 0.6180339887498949


class JudgedNoise(NamedTuple):
    """What a model made of noisy rows."""

    base: NDArray[np.float32]
    """[N] mean squared error of the noise without a thought."""
    guided: NDArray[np.float32]
    """[N, T] the same, guided by each tick of the thought; T = 0 of a model without one."""
    certainty: NDArray[np.float32]
    """[N, T]"""
    level: NDArray[np.int64]
    """[N]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AbstentionPoint:
    """What abstaining below one threshold does to the error at single reverse steps."""

    threshold: float
    abstaining: float
    """Share of the rows."""
    error: float
    """Mean squared error of the noise, base where a row abstains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionQuality:
    """Mean squared errors of the predicted noise, and how certain the thoughts were."""

    rows: int
    base: float
    """Without a thought."""
    guided: float
    """By each row's most certain tick; the base where there is no thought."""
    guided_by_tick: list[float]
    certainty_by_tick: list[float]
    mean_answer_tick: float
    base_by_level: list[float]
    """Over `LEVEL_GROUPS` equal ranges of levels, least noise first."""
    guided_by_level: list[float]
    certainty_by_level: list[float]
    """At the most certain tick."""
    abstention: list[AbstentionPoint]


@torch.no_grad()
def judge_noise(
    model: EnhancedCTMDiffusion,
    take: Callable[[Tensor], tuple[Tensor, Tensor]],
    rows: Tensor,
    *,
    batch_size: int,
    seed: int,
) -> JudgedNoise:
    """Denoise rows once.

    Args:
        take: images in [-1, 1], [n, S, S], and labels of the rows of these numbers.
        rows: numbers, [N].
    """
    device = next(model.parameters()).device
    parts = []
    for some in torch.split(rows, batch_size):
        clean, labels = (tensor.to(device) for tensor in take(some))
        level, noise = draw_noise(some, clean.shape[1:], model.diffusion.levels, seed)
        parts.append(_judge(model, clean, labels, level.to(device), noise.to(device)))
    return JudgedNoise(*(torch.cat(tensors).cpu().numpy() for tensors in zip(*parts, strict=True)))


def draw_noise(rows: Tensor, shape: torch.Size, levels: int, seed: int) -> tuple[Tensor, Tensor]:
    """A level for each row, evenly spread over any run of rows, and noise; both by the row's number."""
    level = (((rows + 1) * _GOLDEN + seed * _GOLDEN**2) % 1.0 * levels).long()
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(_mixed(seed, int(row)))) for row in rows]
    return level, torch.stack(noise)


def _mixed(seed: int, row: int) -> int:
    """Of torch's generator on a CPU only 32 bits of a seed count."""
    return (seed * 2_654_435_761 + row) % 2**32


def _judge(
    model: EnhancedCTMDiffusion, clean: Tensor, labels: Tensor, level: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    noisy = model.schedule.add(clean, noise, level)

    def error(predicted: Tensor) -> Tensor:
        found = model.schedule.take_apart(noisy, predicted, level, model.diffusion.target).noise
        return (found - noise).square().flatten(1).mean(-1)

    base = error(model.denoise(noisy, level, labels, None))
    if model.thinker is None:
        nothing = base.new_zeros(len(base), 0)
        return base, nothing, nothing, level
    thought, nobody = model.think(noisy, level, labels), torch.zeros(len(base), dtype=torch.bool, device=base.device)
    fed = model.nothing_fed(noisy)
    guided = [
        error(
            model.denoise(
                noisy,
                level,
                labels,
                model.guide(prediction, certainty, model.control(state, certainty, level, fed).state, nobody),
            )
        )
        for prediction, certainty, state in zip(*(ticked.unbind(1) for ticked in thought[:3]), strict=True)
    ]
    return base, torch.stack(guided, dim=1), thought.certainties, level


def noise_quality(judged: JudgedNoise, levels: int) -> DiffusionQuality:
    """The numbers of what was judged."""
    base_N, guided_NT, certainty_NT, level_N = judged
    rows = len(base_N)
    if guided_NT.shape[1]:
        answer_N = certainty_NT.argmax(-1)
        guided_N, certainty_N = guided_NT[np.arange(rows), answer_N], certainty_NT[np.arange(rows), answer_N]
    else:
        answer_N, guided_N, certainty_N = np.zeros(rows, np.int64), base_N, np.zeros(rows, np.float32)
    groups = [level_N * LEVEL_GROUPS // levels == group for group in range(LEVEL_GROUPS)]
    return DiffusionQuality(
        rows=rows,
        base=_mean(base_N),
        guided=_mean(guided_N),
        guided_by_tick=[_mean(guided_NT[:, tick]) for tick in range(guided_NT.shape[1])],
        certainty_by_tick=[_mean(certainty_NT[:, tick]) for tick in range(guided_NT.shape[1])],
        mean_answer_tick=float(answer_N.mean() + 1),
        base_by_level=[_mean(base_N[group]) for group in groups],
        guided_by_level=[_mean(guided_N[group]) for group in groups],
        certainty_by_level=[_mean(certainty_N[group]) for group in groups],
        abstention=[_abstain(certainty_N, guided_N, base_N, threshold) for threshold in _thresholds(certainty_N)],
    )


def _thresholds(certainty_N: NDArray[np.float32]) -> list[float]:
    """None abstains, then about a twentieth more of the rows at each."""
    return [0.0, *(float(np.quantile(certainty_N, share)) for share in np.linspace(0.05, 0.95, 19))]


def _abstain(
    certainty_N: NDArray[np.float32], guided_N: NDArray[np.float32], base_N: NDArray[np.float32], threshold: float
) -> AbstentionPoint:
    abstains_N = certainty_N < threshold
    return AbstentionPoint(
        threshold=threshold,
        abstaining=float(abstains_N.mean()),
        error=_mean(np.where(abstains_N, base_N, guided_N)),
    )


def _mean(values: NDArray[np.float32]) -> float:
    """In float64; nan of nothing, without a warning."""
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")
