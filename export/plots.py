"""The card's plots: small PNG files, drawn without a screen."""

# Shapes: N rows, T ticks.

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ctm.frontier import Floats, FrontierPoint
from export.energy import EnergyQuality
from export.quality import Quality

BY_TICK, FRONTIER, CALIBRATION, TICKS_USED = "by_tick.png", "frontier.png", "calibration.png", "ticks_used.png"
ENERGY_FRONTIER, ENERGY_BY_TICK = "energy_frontier.png", "energy_by_tick.png"
_BINS = 15


def write_plots(quality: Quality, folder: Path) -> None:
    """Draw all into a folder: four, and two more of a model with an energy head."""
    with axes_of(folder / BY_TICK) as axes:
        _draw_by_tick(axes, quality)
    with axes_of(folder / FRONTIER) as axes:
        _draw_frontier(axes, quality)
    with axes_of(folder / CALIBRATION) as axes:
        _draw_calibration(axes, quality)
    with axes_of(folder / TICKS_USED) as axes:
        _draw_ticks_used(axes, quality)
    if quality.energy is not None:
        with axes_of(folder / ENERGY_FRONTIER) as axes:
            _draw_energy_frontier(axes, quality, quality.energy)
        with axes_of(folder / ENERGY_BY_TICK) as axes:
            _draw_energy_by_tick(axes, quality.judged.correct, quality.energy)


def _draw_by_tick(axes: Axes, quality: Quality) -> None:
    ticks = np.arange(1, len(quality.accuracy) + 1)
    if quality.bits_per_byte:
        axes.plot(ticks, quality.bits_per_byte, marker=".", label="each tick")
        axes.axhline(quality.bits_per_byte_most_certain, color="grey", linestyle=":", label="most certain tick")
        axes.set(xlabel="tick", ylabel="bits per byte", title="Bits per byte by tick")
        axes.legend(loc="upper right")
        return
    axes.plot(ticks, quality.accuracy, marker=".", label="accuracy")
    if quality.whole:
        axes.plot(ticks, quality.whole, marker=".", label="right as a whole")
    axes.plot(ticks, quality.certainty, marker=".", label="mean certainty")
    axes.axhline(quality.accuracy_most_certain, color="grey", linestyle=":", label="accuracy, most certain tick")
    axes.set(xlabel="tick", ylabel="share", ylim=(0, 1.02), title="Accuracy and certainty by tick")
    axes.legend(loc="lower right")


def _draw_frontier(axes: Axes, quality: Quality) -> None:
    points, shipped = quality.frontier, quality.shipped
    axes.plot([point.mean_ticks for point in points], [_worth(point) for point in points], marker=".")
    for point in points[:: max(1, len(points) // 6)]:
        axes.annotate(f"{point.threshold:g}", (point.mean_ticks, _worth(point)), fontsize=8)
    axes.plot(shipped.mean_ticks, _worth(shipped), marker="o", color="tab:red", linestyle="", label="shipped")
    best = quality.bits_per_byte_most_certain if quality.bits_per_byte else quality.accuracy_most_certain
    axes.axhline(best, color="grey", linestyle=":", label="most certain of all ticks")
    name = "bits per byte" if quality.bits_per_byte else "accuracy"
    axes.set(xlabel="mean ticks", ylabel=name, title="What a certainty threshold costs and saves")
    axes.margins(x=0.08)
    axes.legend(loc="lower right")


def _worth(point: FrontierPoint) -> float:
    return point.accuracy if point.bits_per_byte is None else point.bits_per_byte


def _draw_calibration(axes: Axes, quality: Quality) -> None:
    """Confidence against accuracy of the answers under the rules that ship."""
    _, answer_N = quality.stopped()
    rows_N = np.arange(len(answer_N))
    confidence_N, correct_N = quality.judged.confidence[rows_N, answer_N], quality.judged.correct[rows_N, answer_N]
    bin_N = np.clip((confidence_N * _BINS).astype(np.int64), 0, _BINS - 1)
    count, filled = np.bincount(bin_N, minlength=_BINS), np.unique(bin_N)
    mean_confidence = np.bincount(bin_N, confidence_N, minlength=_BINS)[filled] / count[filled]
    mean_correct = np.bincount(bin_N, correct_N, minlength=_BINS)[filled] / count[filled]
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
    axes.scatter(mean_confidence, mean_correct, s=12 + 120 * count[filled] / len(rows_N), label="answers (area: rows)")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"Calibration {_shipped(quality)}")
    axes.legend(loc="upper left")


def _draw_ticks_used(axes: Axes, quality: Quality) -> None:
    used_N, _ = quality.stopped()
    ticks = quality.judged.certainty.shape[1]
    axes.bar(np.arange(1, ticks + 1), np.bincount(used_N, minlength=ticks + 1)[1:] / len(used_N))
    axes.axvline(used_N.mean(), color="tab:red", linestyle=":", label="mean")
    axes.set(xlabel="ticks used", ylabel="share of rows")
    axes.set_title(f"Ticks used {_shipped(quality)}")
    axes.legend(loc="upper right")


def _draw_energy_frontier(axes: Axes, quality: Quality, energy: EnergyQuality) -> None:
    """What each rule alone costs and saves, and where the rules that ship together stand."""
    for name, points in (
        ("certainty threshold", quality.frontier),
        ("energy threshold", energy.thresholds),
        ("energy settled", energy.deltas),
    ):
        along = sorted((point.mean_ticks, point.accuracy) for point in points)
        axes.plot(*zip(*along, strict=True), marker=".", label=f"{name} alone")
    shipped = energy.shipped
    axes.plot(shipped.mean_ticks, shipped.accuracy, marker="o", color="tab:red", linestyle="", label="shipped")
    axes.axhline(quality.accuracy_most_certain, color="grey", linestyle=":", label="most certain of all ticks")
    axes.set(xlabel="mean ticks", ylabel="accuracy", title="Stopping by certainty and by energy")
    axes.legend(loc="lower right")


def _draw_energy_by_tick(axes: Axes, correct_NT: Floats, energy: EnergyQuality) -> None:
    """The mean energy of right and of wrong predictions, and how well it tells them apart."""
    ticks, right_NT = np.arange(1, correct_NT.shape[1] + 1), correct_NT == 1
    for name, which_NT, colour in (("right", right_NT, "tab:green"), ("wrong", ~right_NT, "tab:orange")):
        mean_T = np.ma.masked_array(energy.energies, ~which_NT).mean(axis=0).filled(np.nan)
        axes.plot(ticks, mean_T, marker=".", color=colour, label=f"mean energy where {name}")
    axes.set(xlabel="tick", ylabel="energy", title="Energy of right and wrong predictions")
    axes.legend(loc="upper right")


def _shipped(quality: Quality) -> str:
    if quality.energy is None:
        return f"at threshold {quality.shipped.threshold:g}"
    return "under the rules that ship"


@contextmanager
def axes_of(path: Path) -> Iterator[Axes]:
    """Axes that are saved to `path`. Without pyplot, whose global figures outlive their use."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    yield axes
    figure.savefig(path, dpi=90, metadata={"Software": None})
