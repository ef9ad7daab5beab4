"""The picture of `two_agents`: each signal over what it should follow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_two_agents(document: Mapping[str, Any], path: Path) -> None:
    """Draw goals, emotions, resonance and reward as means over seeds, in bands from the lowest to the highest."""
    runs = document["runs"]
    every = [run["arms"]["all"] for run in runs]
    alone = [run["arms"]["resonance"] for run in runs]
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    FigureCanvasAgg(figure)  # Without pyplot, which wants to know of screens.
    goals, emotions, traces, rewards = figure.subplots(1, 4)

    _band(goals, [arm["goal_by_tick"] for arm in every], "predicted")
    _band(goals, [run["goal_best_by_tick"] for run in runs], "best possible")
    goals.axhline(document["chance"], linestyle=":", color="grey", label="chance")
    goals.set(title="the other's goal", xlabel="tick", ylabel="share right", ylim=(0, 1))

    _band(emotions, [arm["probe_by_tick"] for arm in every], "linear probe")
    emotions.axhline(0.5, linestyle=":", color="grey", label="chance")
    emotions.set(title="calm or upset", xlabel="tick", ylabel="share right", ylim=(0, 1.02))

    _band(traces, [arm["resonance_by_tick"] for arm in every], "drawn to the other")
    _band(traces, [arm["resonance_by_tick"] for arm in alone], "not drawn")
    traces.set(title="resonance of traces", xlabel="tick", ylabel="reward")

    angles = np.array([run["reward_by_angle"] for run in runs])
    rewards.plot(angles[0, :, 0], angles[:, :, 1].mean(0), marker=".")
    rewards.set(title="selfless reward", xlabel="push, degrees off the goal", ylabel="mean reward")

    for axes in (goals, emotions, traces, rewards):
        axes.grid(alpha=0.3)
    for axes in (goals, emotions, traces):
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def _band(axes: Axes, values: Sequence[Sequence[float]], label: str) -> None:
    ticks = np.arange(1, len(values[0]) + 1)
    (line,) = axes.plot(ticks, np.mean(values, axis=0), marker=".", label=label)
    axes.fill_between(ticks, np.min(values, axis=0), np.max(values, axis=0), alpha=0.2, color=line.get_color())
