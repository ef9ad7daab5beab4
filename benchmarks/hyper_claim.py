"""`python -m benchmarks.hyper_claim`: whether weights that change keep a thought steady that goes on past its training.

Trains a plain CTM and HyperCTMs on MNIST by configs/mnist-*.toml, a few seeds each, the same rows and updates for all,
and lets each think several times as many ticks as it was trained with. Prints a table, then everything as one line of
JSON. Runs that are there already are not trained again. Settings are judged on held-out rows; `--test` reads the test
rows, for the numbers that are published.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.hardware import inspect
from benchmarks.hyper_plot import plot_claim
from benchmarks.options import add_mnist_option, add_save_option
from benchmarks.report import wide_console
from benchmarks.runs import train_command, train_once
from benchmarks.statistics import spread
from ctm.calibration import calibration_error
from ctm.checkpoint import load_model
from ctm.frontier import NEVER, stopping
from ctm.judge import judge
from ctm.tasks import load_task
from ctm.training.resume import last_checkpoint, run_of
from export.commit import describe_commit

# Shapes: N rows, T ticks.

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
RESULTS, DOCS = Path(__file__).with_name("results"), ROOT / "docs"
ARMS = {
    "mnist-plain": "plain CTM",
    "mnist-hyper": "HyperCTM, bottleneck",
    "mnist-hyper-full": "HyperCTM, bottleneck and neurons",
}
LONGER = 3
"""Ticks thought, over ticks trained with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """How good the answers of one rule are, as shares."""

    accuracy: float
    calibration_error: float
    """Expected, of 15 bins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One trained model, thinking longer than it was trained to; lists run over its ticks."""

    arm: str
    seed: int
    weights: int
    command: str
    """That trains it."""
    ticks_trained: int
    answers: dict[str, Answers]
    """By rule: `RULES`."""
    accuracy_by_tick: list[float]
    calibration_error_by_tick: list[float]
    certainty_by_tick: list[float]


RULES = {
    "certain_trained": "most certain, trained ticks",
    "last_trained": "last trained tick",
    "certain_all": "most certain, all ticks",
    "last_all": "last tick",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, measure, print; save if asked to."""
    options = _parser().parse_args(argv)
    console, hardware = wide_console(), inspect()
    runs = []
    for seed in options.seeds:
        # Seeds outermost: whatever ends this early leaves pairs.
        for arm in options.arms:
            command = train_command(CONFIGS / f"{arm}.toml", f"{arm}-{seed}", seed, options.updates, options.data_dir)
            folder = options.runs / f"{arm}-{seed}"
            train_once(folder, command)
            runs.append(measure(arm, seed, folder, command, options.data_dir, test=options.test))
            console.print(f"{folder}: {_sentence(runs[-1])}", highlight=False)
    split = "test" if options.test else "held-out"
    console.print(claim_table(f"MNIST, {split} rows, {len(options.seeds)} seeds, mean ± deviation", runs))
    document = {
        "benchmark": "hyper_claim",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(Path(__file__).parent),
        "hardware": asdict(hardware),
        "torch": torch.__version__,
        "rows": split,
        "summary": summarise(runs),
        "runs": [asdict(run) for run in runs],
    }
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        path = options.save / f"hyper-claim_{hardware.slug}_{datetime.now(UTC):%Y%m}.json"
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot_claim([(ARMS[arm], [run for run in runs if run.arm == arm]) for arm in options.arms], options.plot)
    print(json.dumps(document))
    return 0


def measure(arm: str, seed: int, folder: Path, command: Sequence[str], data_dir: Path | None, *, test: bool) -> Run:
    """Think about all rows for `LONGER` times the trained ticks; the weights are the run's last, chosen by nobody."""
    model, _ = load_model(folder / "last")
    trained = model.config.ticks
    model.config = replace(model.config, ticks=LONGER * trained)
    task = load_task(run_of(last_checkpoint(folder)).task, data_dir)
    judged = judge(model, task.test if test else task.held_out)
    return Run(
        arm=arm,
        seed=seed,
        weights=sum(weight.numel() for weight in model.parameters()),
        command=shlex.join(command).replace(f"{ROOT}/", ""),
        ticks_trained=trained,
        answers=answers(judged.certainty, judged.correct, judged.confidence, trained),
        accuracy_by_tick=judged.correct.mean(axis=0, dtype=np.float64).tolist(),
        calibration_error_by_tick=calibration_error(judged.confidence, judged.correct).tolist(),
        certainty_by_tick=judged.certainty.mean(axis=0, dtype=np.float64).tolist(),
    )


Floats = NDArray[np.floating]


def answers(certainty_NT: Floats, correct_NT: Floats, confidence_NT: Floats, trained: int) -> dict[str, Answers]:
    """What each rule answers, by the name it has in `RULES`."""
    rows, ticks = certainty_NT.shape
    _, certain_trained_N = stopping(certainty_NT[:, :trained], NEVER)
    _, certain_all_N = stopping(certainty_NT, NEVER)
    chosen = (certain_trained_N, np.full(rows, trained - 1), certain_all_N, np.full(rows, ticks - 1))
    found = {}
    for name, tick_N in zip(RULES, chosen, strict=True):
        correct_N1 = np.take_along_axis(correct_NT, tick_N[:, None], axis=1)
        confidence_N1 = np.take_along_axis(confidence_NT, tick_N[:, None], axis=1)
        error = float(calibration_error(confidence_N1, correct_N1)[0])
        found[name] = Answers(accuracy=float(correct_N1.mean(dtype=np.float64)), calibration_error=error)
    return found


def summarise(runs: Sequence[Run]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and sample deviation over seeds, by arm and rule."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for arm in dict.fromkeys(run.arm for run in runs):
        for rule in RULES:
            of_arm = [run.answers[rule] for run in runs if run.arm == arm]
            values = {}
            for name in ("accuracy", "calibration_error"):
                values[name], values[f"{name}_deviation"] = spread([getattr(answer, name) for answer in of_arm])
            summary.setdefault(arm, {})[rule] = values
    return summary


def claim_table(title: str, runs: Sequence[Run]) -> Table:
    """One line an arm: accuracy in percent and expected calibration error."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("model")
    table.add_column("weights", justify="right")
    for rule in RULES.values():
        table.add_column(rule, justify="right")
    weights = {run.arm: run.weights for run in runs}
    for arm, rules in summarise(runs).items():
        cells = (
            f"{100 * values['accuracy']:.2f}±{100 * values['accuracy_deviation']:.2f} %  "
            f"ECE {values['calibration_error']:.3f}±{values['calibration_error_deviation']:.3f}"
            for values in rules.values()
        )
        table.add_row(ARMS[arm], f"{weights[arm]:,}", *cells)
    return table


def _sentence(run: Run) -> str:
    return ", ".join(f"{100 * run.answers[name].accuracy:.2f} % {words}" for name, words in RULES.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hyper_claim", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_mnist_option(parser)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="to compare [all]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of each arm [0 1 2]")
    parser.add_argument("--updates", type=int, help="of each run [its configuration's]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="holds the runs' folders [%(default)s]")
    parser.add_argument("--test", action="store_true", help="measure on the test rows [held-out rows]")
    add_save_option(parser, RESULTS)
    parser.add_argument(
        "--plot", type=Path, nargs="?", const=DOCS / "hyper.png", metavar="FILE", help="draw it [docs/hyper.png]"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
