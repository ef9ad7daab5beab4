"""How well a diffusion model denoises held-out images, with and without its thought."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ctm.diffusion.images import to_diffusion
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.quality import DiffusionQuality, JudgedNoise, judge_noise, noise_quality
from ctm.tasks import Rows
from ctm.training.evaluate import share_of_process

SEED = 0
"""Of the noise: the same at every evaluation of every run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionEvaluation:
    """A diffusion model's numbers on held-out images."""

    quality: DiffusionQuality

    @property
    def rows(self) -> int:
        return self.quality.rows

    @property
    def score(self) -> float:
        """By which the best checkpoint is chosen; higher is better."""
        return -self.quality.guided

    def scalars(self) -> dict[str, float]:
        """What is drawn over the course of a run."""
        quality = self.quality
        scalars = {"guided_error": quality.guided, "base_error": quality.base}
        if not quality.guided_by_tick:
            return scalars
        return scalars | {
            "guided_error_first_tick": quality.guided_by_tick[0],
            "guided_error_last_tick": quality.guided_by_tick[-1],
            "mean_answer_tick": quality.mean_answer_tick,
            "certainty_last_tick": quality.certainty_by_tick[-1],
        }

    def sentence(self) -> str:
        """For the log."""
        quality = self.quality
        if not quality.guided_by_tick:
            return f"held-out error of the noise {quality.base:.5f}, without a thought"
        return (
            f"held-out error of the noise {quality.guided:.5f} guided by the most certain tick, "
            f"{quality.guided_by_tick[0]:.5f} by the first, {quality.base:.5f} without a thought"
        )


def evaluate_diffusion(
    model: EnhancedCTMDiffusion, rows: Rows, batch_size: int, accelerator: Accelerator | None = None
) -> DiffusionEvaluation:
    """Denoise all rows once; of several processes each does its share, and all get the same numbers."""
    side, levels = model.diffusion.side, model.diffusion.levels

    def take(numbers: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = rows.take(numbers)
        return to_diffusion(inputs, side), targets

    if accelerator is None or accelerator.num_processes == 1:
        judged = judge_noise(model, take, torch.arange(len(rows)), batch_size=batch_size, seed=SEED)
        return DiffusionEvaluation(quality=noise_quality(judged, levels))
    mine = share_of_process(len(rows), accelerator)
    base, guided, certainty, level = judge_noise(model, take, mine, batch_size=batch_size, seed=SEED)
    packed = np.concatenate([base[:, None], level[:, None].astype(np.float32), guided, certainty], axis=1)
    everyone: Tensor = accelerator.gather(torch.from_numpy(packed).to(accelerator.device))
    base, level, *ticked = everyone[: len(rows)].cpu().numpy().T
    ticks = len(ticked) // 2
    guided, certainty = (np.stack(part, axis=1) if part else guided[:0] for part in (ticked[:ticks], ticked[ticks:]))
    return DiffusionEvaluation(quality=noise_quality(JudgedNoise(base, guided, certainty, level.astype(int)), levels))
