"""A picture of an evaluation: accuracy and certainty by tick, and what each certainty threshold costs in ticks."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ctm.training.evaluate import Evaluation
from ctm.training.evaluate_diffusion import DiffusionEvaluation
from ctm.training.evaluate_text import TextEvaluation


def plot_evaluation(evaluation: Evaluation, title: str) -> Figure:
    figure, (by_tick, by_threshold) = _two_axes(title)
    ticks = range(1, len(evaluation.accuracy_by_tick) + 1)
    by_tick.plot(ticks, evaluation.accuracy_by_tick, marker=".", label="accuracy")
    by_tick.plot(ticks, evaluation.certainty_by_tick, marker=".", label="mean certainty")
    if evaluation.whole_by_tick is not None:
        by_tick.plot(ticks, evaluation.whole_by_tick, marker=".", label="right as a whole")
    by_tick.axhline(evaluation.accuracy, linestyle=":", color="grey", label="accuracy, most certain tick")
    by_tick.set(xlabel="tick", ylabel="share of rows", ylim=(0, 1.02))
    by_tick.legend(loc="lower right")

    points = evaluation.frontier
    by_threshold.plot([point.mean_ticks for point in points], [point.accuracy for point in points], marker=".")
    for point in points[:: max(1, len(points) // 6)]:
        by_threshold.annotate(f"{point.threshold:g}", (point.mean_ticks, point.accuracy), fontsize=8)
    by_threshold.set(xlabel="mean ticks", ylabel="accuracy", title="stopping at a certainty threshold")
    return figure


def plot_text(evaluation: TextEvaluation, title: str) -> Figure:
    figure, (by_tick, by_threshold) = _two_axes(title)
    quality = evaluation.quality
    ticks = range(1, len(quality.bits_per_byte_by_tick) + 1)
    by_tick.plot(ticks, quality.bits_per_byte_by_tick, marker=".", label="each tick")
    by_tick.axhline(quality.bits_per_byte, linestyle=":", color="grey", label="most certain tick")
    by_tick.set(xlabel="tick", ylabel="bits per byte")
    by_tick.legend(loc="upper right")

    points = quality.frontier
    ticks_and_bits = np.array([(point.mean_ticks, point.bits_per_byte) for point in points], np.float64)
    by_threshold.plot(*ticks_and_bits.T, marker=".")
    by_threshold.set(xlabel="mean ticks a token", ylabel="bits per byte", title="stopping at a certainty threshold")
    return figure


def plot_diffusion(evaluation: DiffusionEvaluation, title: str) -> Figure:
    figure, (by_level, by_abstention) = _two_axes(title)
    quality = evaluation.quality
    middles = [(group + 0.5) / len(quality.base_by_level) for group in range(len(quality.base_by_level))]
    by_level.plot(middles, quality.base_by_level, marker=".", label="without a thought")
    by_level.plot(middles, quality.guided_by_level, marker=".", label="guided")
    by_level.plot(middles, quality.certainty_by_level, marker=".", linestyle=":", label="mean certainty")
    by_level.set(xlabel="level of noise, as a share", ylabel="mean squared error of the noise")
    by_level.legend(loc="upper right")

    points = quality.abstention
    by_abstention.plot([point.abstaining for point in points], [point.error for point in points], marker=".")
    by_abstention.set(xlabel="share of rows that abstain", ylabel="error", title="abstaining where uncertain")
    return figure


def _two_axes(title: str) -> tuple[Figure, tuple[Axes, Axes]]:
    """A figure of two axes side by side, each with a grid."""
    # Without pyplot: its global figures would outlive the run, and it wants to know of screens.
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure, (left, right)


def save_plot(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
