"""One reverse step, from a level of noise to a lower one; and which levels a sample goes through.

    x_s = signal_s x_0 + sqrt(spread_s^2 - sigma^2) eps + sigma z
    sigma = eta (spread_s / spread_l) sqrt(1 - signal_l^2 / signal_s^2)

eta = 1 is ancestral sampling (DDPM, arXiv 2006.11239), eta = 0 is deterministic (DDIM, arXiv 2010.02502). From the
last level there is no lower one: the step ends at the estimate of x_0.
"""

# Shapes: N rows.

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ctm.diffusion.noise import NoiseSchedule, Parts

CLEAN = -1
"""As a level: no noise at all."""


def reverse_step(
    schedule: NoiseSchedule, parts: Parts, level_N: Tensor, next_N: Tensor, noise: Tensor, eta_N: Tensor
) -> Tensor:
    """The image at the next level.

    Args:
        parts: what the image at `level_N` is thought to be made of; `clipped`.
        next_N: lower than `level_N`, or `CLEAN`.
        noise: fresh, z; of the image's shape.
        eta_N: in [0, 1].
    """
    signal, spread = schedule.at(level_N, noise)
    ends = (next_N == CLEAN).view((-1,) + (1,) * (noise.dim() - 1))
    next_signal, next_spread = schedule.at(next_N.clamp(min=0), noise)
    next_signal, next_spread = next_signal.masked_fill(ends, 1.0), next_spread.masked_fill(ends, 0.0)
    eta = eta_N.view(ends.shape)
    ratio = (1 - (signal / next_signal).square()).clamp(min=0)
    sigma = eta * next_spread / spread * ratio.sqrt()
    rest = (next_spread.square() - sigma.square()).clamp(min=0).sqrt()
    return next_signal * parts.clean + rest * parts.noise + sigma * noise


def clipped(schedule: NoiseSchedule, parts: Parts, level_N: Tensor) -> Parts:
    """x_0 brought to [-1, 1], where images are, and the noise that goes with it: both still give the noisy image."""
    signal, spread = schedule.at(level_N, parts.clean)
    clean = parts.clean.clamp(-1, 1)
    return Parts(clean, parts.noise + signal / spread * (parts.clean - clean))


def spaced_levels(levels: int, steps: int) -> NDArray[np.int64]:
    """The levels that a sample of so many steps goes through, from the noisiest down, evenly spaced.

    Raises:
        ValueError: fewer than 1 step, or more than there are levels.
    """
    if not 1 <= steps <= levels:
        raise ValueError(f"steps must be in [1, {levels}], got {steps}")
    return np.round(np.linspace(levels - 1, 0, steps) if steps > 1 else np.array([levels - 1.0])).astype(np.int64)


def certain_stride(certainty: float, threshold: float, most: int) -> int:
    """How many of the planned steps to take at once: more where the thought is certain of the clean image.

    One at or below the threshold, `most` at certainty 1, in a line between.
    """
    # Of what is no number, one too.
    if not certainty > threshold:
        return 1
    return 1 + round((most - 1) * (min(certainty, 1.0) - threshold) / (1 - threshold))
