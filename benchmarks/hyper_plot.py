"""The picture of `hyper_claim`: accuracy and calibration by tick, past the ticks that the models were trained with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class ByTick(Protocol):
    """What is drawn of a run."""

    @property
    def ticks_trained(self) -> int: ...
    @property
    def accuracy_by_tick(self) -> Sequence[float]: ...
    @property
    def calibration_error_by_tick(self) -> Sequence[float]: ...


def plot_claim(arms: Sequence[tuple[str, Sequence[ByTick]]], path: Path) -> None:
    """Draw each arm as the mean over its runs, in a band from the lowest to the highest.

    Args:
        arms: titles and runs, at least one in all.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)  # Without pyplot, which wants to know of screens.
    accuracy, error = figure.subplots(1, 2)
    for title, runs in arms:
        for axes, values in (
            (accuracy, [run.accuracy_by_tick for run in runs]),
            (error, [run.calibration_error_by_tick for run in runs]),
        ):
            ticks = np.arange(1, len(values[0]) + 1)
            (line,) = axes.plot(ticks, np.mean(values, axis=0), marker=".", label=title)
            axes.fill_between(ticks, np.min(values, axis=0), np.max(values, axis=0), alpha=0.2, color=line.get_color())
    trained = arms[0][1][0].ticks_trained
    for axes, name in ((accuracy, "accuracy"), (error, "expected calibration error")):
        axes.axvline(trained, linestyle=":", color="grey", label=f"trained with {trained} ticks")
        axes.set(xlabel="tick", ylabel=name)
        axes.grid(alpha=0.3)
    accuracy.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
