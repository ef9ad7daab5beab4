"""What stopping by certainty and by energy came to, over seeds: tables in Markdown, and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.statistics import spread
from export.markdown import table

NAMES = {"every_tick": "cross-entropy of every tick", "paper": "the paper's loss", "both": "both"}
Runs = Sequence[Mapping[str, Any]]


def tables(document: Mapping[str, Any]) -> str:
    """Which loss is better, then, for each, what each rule saves. A cell is the mean over seeds ± sample deviation."""
    parts = [_losses(document)]
    for beside, runs in document["beside"].items():
        parts.append(f"Learned by {NAMES[beside]}:\n\n{_rules(document, runs)}")
    return "\n\n".join(parts)


def _losses(document: Mapping[str, Any]) -> str:
    head = ("learned beside the energies", "held-out accuracy", "first tick", "last tick", "separation by energy")
    rows = [
        (
            NAMES[beside],
            _share([run["held_out_accuracy"] for run in runs]),
            _share([run["held_out_accuracy_by_tick"][0] for run in runs]),
            _share([run["held_out_accuracy_by_tick"][-1] for run in runs]),
            _number([_mean(run["separation"]) for run in runs], 3),
            _number([_mean(run["certainty_separation"]) for run in runs], 3),
            _number([_mean(run["energy_calibration_error"]) for run in runs], 3),
        )
        for beside, runs in document["beside"].items()
    ]
    return table((*head, "by certainty", "calibration error of energy"), rows)


def _rules(document: Mapping[str, Any], runs: Runs) -> str:
    """Mean ticks on the test rows and, in brackets, the points of accuracy lost there, by rule."""
    names = list(runs[0]["rules"])
    rows = [
        (f"{100 * loss:g}", *(_outcomes(runs, name, place) for name in names))
        for place, loss in enumerate(document["losses"])
    ]
    return table(("points allowed", *names), rows)


def _outcomes(runs: Runs, name: str, place: int) -> str:
    outcomes = [run["rules"][name][place] for run in runs]
    lost = [100 * (run["test_accuracy"] - outcome["accuracy"]) for run, outcome in zip(runs, outcomes, strict=True)]
    return f"{_number([outcome['ticks'] for outcome in outcomes], 2)} ({_number(lost, 2)})"


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Mean ticks on test rows against the loss that was allowed on held-out rows, a panel for each way of learning."""
    kinds = document["beside"]
    figure = Figure(figsize=(4 * len(kinds), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    losses = 100 * np.array(document["losses"])
    for axes, (beside, runs) in zip(panels, kinds.items(), strict=True):
        for name in runs[0]["rules"]:
            ticks = [[outcome["ticks"] for outcome in run["rules"][name]] for run in runs]
            means, deviations = zip(*map(spread, zip(*ticks, strict=True)), strict=True)
            axes.errorbar(losses, means, deviations, marker=".", capsize=3, label=name)
        axes.set(title=NAMES[beside], xlabel="points of accuracy allowed", ylim=(0, document["ticks"] * 1.05))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean ticks, test rows")
    panels[-1].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def _share(values: Sequence[float]) -> str:
    mean, deviation = spread(values)
    return f"{mean:.2%} ± {100 * deviation:.2f}"


def _number(values: Sequence[float], digits: int) -> str:
    mean, deviation = spread(values)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def _mean(values: Sequence[float | None]) -> float:
    """Over the ticks at which there is one."""
    return float(np.mean([value for value in values if value is not None]))
