"""The plots in the card of a model of diffusion."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from export.plots import BY_TICK, axes_of
from export.quality_diffusion import NoiseQuality

BY_LEVEL, ABSTENTION = "by_level.png", "abstention.png"


def write_noise_plots(quality: NoiseQuality, folder: Path) -> None:
    """Draw all into a folder."""
    for name, draw in ((BY_TICK, _draw_by_tick), (BY_LEVEL, _draw_by_level), (ABSTENTION, _draw_abstention)):
        with axes_of(folder / name) as axes:
            draw(axes, quality)


def _draw_by_tick(axes: Axes, quality: NoiseQuality) -> None:
    found = quality.found
    ticks = np.arange(1, len(found.guided_by_tick) + 1)
    axes.plot(ticks, found.guided_by_tick, marker=".", label="guided by each tick")
    axes.axhline(found.guided, color="grey", linestyle=":", label="by the most certain tick")
    axes.axhline(found.base, color="tab:orange", linestyle="--", label="without a thought")
    axes.set(xlabel="tick", ylabel="mean squared error of the noise", title="What a thought finds, tick by tick")
    axes.legend()


def _draw_by_level(axes: Axes, quality: NoiseQuality) -> None:
    found = quality.found
    parts = np.arange(len(found.base_by_level))
    axes.bar(parts - 0.2, found.base_by_level, 0.4, label="without a thought", color="tab:orange")
    axes.bar(parts + 0.2, found.guided_by_level, 0.4, label="guided", color="tab:blue")
    axes.plot(parts, found.certainty_by_level, marker=".", color="grey", label="mean certainty")
    axes.set_xticks(parts, [f"{part / len(parts):.0%}–{(part + 1) / len(parts):.0%}" for part in parts])
    axes.set(xlabel="level of noise", ylabel="mean squared error of the noise", title="By level of noise")
    axes.legend()


def _draw_abstention(axes: Axes, quality: NoiseQuality) -> None:
    points, shipped = quality.found.abstention, quality.abstaining
    axes.plot([point.abstaining for point in points], [point.error for point in points], marker=".")
    axes.plot(shipped.abstaining, shipped.error, marker="o", color="tab:red", linestyle="", label="shipped")
    axes.set(xlabel="share that abstains", ylabel="mean squared error of the noise", title="What abstaining costs")
    axes.legend()
