"""`python -m benchmarks.diffusion`: does a thought pay in diffusion, and what does abstaining do to the samples?

Trains CTM-controlled diffusion of MNIST's digits, and denoisers alone of as many weights on the same rows and updates,
a few seeds each; compares their errors of the noise on the same noisy rows, and what an independent judge says of
their samples, drawn from the same noise, over several thresholds. Prints tables, then everything as one line of JSON.
Runs that are there already are not trained again. What denoisers alone came to is saved in a file of its own, as is
what other numbers of updates came to, so that the arms can be measured in several sittings. `--test` reads the test
rows, for the numbers that are published.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.diffusion_plot import plot_samples
from benchmarks.diffusion_samples import (
    JudgedSamples,
    Setting,
    draw_samples,
    judge_samples,
    labels_of,
    settings_to_try,
)
from benchmarks.hardware import inspect
from benchmarks.options import add_mnist_option, add_save_option
from benchmarks.report import wide_console
from benchmarks.runs import ROOT, train_command, train_once
from benchmarks.statistics import spread
from ctm.diffusion.digit_judge import DigitJudge, judge_images, load_judge, pooled
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.quality import DiffusionQuality
from ctm.families import load_trained
from ctm.tasks import Rows, load_task
from ctm.training.evaluate_diffusion import evaluate_diffusion
from ctm.training.resume import holds_run, last_checkpoint, run_of
from export.commit import describe_commit

# Shapes: N rows, F features.

CONFIGS, DOCS = ROOT / "configs", ROOT / "docs"
RESULTS = Path(__file__).with_name("results")
ARMS = {
    "mnist-diffusion": "guided by a thought",
    "mnist-diffusion-base": "denoiser alone",
    "mnist-diffusion-twice": "denoiser alone, two rounds",
    "mnist-diffusion-thoughtless": "the guided one's denoiser, two rounds without a thought",
}
SHARES = (0.1, 0.25, 0.5)
"""Of the row-steps, that should abstain."""
EVERYBODY = 1.0
"""As a threshold: nobody is so certain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One trained model and what was found."""

    arm: str
    seed: int
    weights: int
    command: str
    """That trains it."""
    quality: DiffusionQuality
    samples: list[JudgedSamples]


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, measure, print; save if asked to."""
    options = _parser().parse_args(argv)
    console, hardware = wide_console(), inspect()
    judge = load_judge(options.judge)
    runs, folders = [], []
    for seed in options.seeds:
        # Seeds outermost: whatever ends this early leaves pairs.
        for arm in options.arms:
            name = f"{arm}-{seed}" if options.updates is None else f"{arm}-{seed}-{options.updates}"
            command = train_command(CONFIGS / f"{arm}.toml", name, seed, options.updates, options.data_dir)
            folder = options.runs / name
            if options.trained and not holds_run(folder):
                continue
            train_once(folder, command)
            folders.append(folder)
            runs.append(measure(arm, seed, folder, command, judge, options))
            console.print(f"{name}: error of the noise {runs[-1].quality.guided:.5f}", highlight=False)
    split = "test" if options.test else "held-out"
    console.print(errors_table(f"Error of the noise, MNIST, {split} rows", runs))
    console.print(samples_table(f"{options.samples:,} samples of {options.steps} reverse steps, judged", runs))
    document = {
        "benchmark": "diffusion",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(Path(__file__).parent),
        "hardware": asdict(hardware),
        "torch": torch.__version__,
        "rows": split,
        "samples": options.samples,
        "runs": [asdict(run) for run in runs],
    }
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        what = "diffusion" if any(run.quality.guided_by_tick for run in runs) else "diffusion_alone"
        if options.updates is not None:
            what += f"_{options.updates}_updates"
        path = options.save / f"{what}_{hardware.slug}_{datetime.now(UTC):%Y%m}.json"
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot_samples(_load(folders[0]), Setting(steps=options.steps, eta=options.eta), options.seeds[0], options.plot)
    print(json.dumps(document))
    return 0


def measure(
    arm: str, seed: int, folder: Path, command: Sequence[str], judge: DigitJudge, options: argparse.Namespace
) -> Run:
    """The weights are the run's last, chosen by nobody."""
    model = _load(folder)
    task = load_task(run_of(last_checkpoint(folder)).task, options.data_dir)
    rows = task.test if options.test else task.held_out
    return Run(
        arm=arm,
        seed=seed,
        weights=sum(weight.numel() for weight in model.parameters()),
        command=shlex.join(command).replace(f"{ROOT}/", ""),
        quality=evaluate_diffusion(model, rows, 250).quality,
        samples=_sample(model, judge, _features(judge, rows, options.samples), options),
    )


def _load(folder: Path) -> EnhancedCTMDiffusion:
    model = load_trained(last_checkpoint(folder)).model
    assert isinstance(model, EnhancedCTMDiffusion), f"{folder} holds a diffusion model"
    return model


def _features(judge: DigitJudge, rows: Rows, count: int) -> Tensor:
    """Of as many real digits as samples are drawn, evenly spread."""
    inputs, _ = rows.take(torch.linspace(0, len(rows) - 1, count).long())
    return judge_images(judge, pooled(inputs, judge.config.side)).features


def _sample(
    model: EnhancedCTMDiffusion, judge: DigitJudge, features_NF: Tensor, options: argparse.Namespace
) -> list[JudgedSamples]:
    """Drawn freely, then with more and more abstaining, then with thoughts that end early."""
    labels_N = labels_of(options.samples, model.diffusion.classes)
    steps, eta = options.steps, options.eta
    free_setting = Setting(steps=steps, eta=eta)
    free = draw_samples(model, labels_N, free_setting, seed=options.sample_seed)
    found = [judge_samples(free, labels_N, free_setting, judge, features_NF)]
    if model.thinker is None:
        return found
    settings = settings_to_try(free, steps, eta, SHARES)
    settings.append(Setting(steps=steps, eta=eta, confidence_threshold=EVERYBODY))
    settings += [Setting(steps=steps, eta=eta, certainty_threshold=threshold) for threshold in options.certain]
    for setting in settings:
        samples = draw_samples(model, labels_N, setting, seed=options.sample_seed)
        found.append(judge_samples(samples, labels_N, setting, judge, features_NF))
    return found


def errors_table(title: str, runs: Sequence[Run]) -> Table:
    """One line an arm: means and deviations over seeds."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in (
        "model",
        "weights",
        "error",
        "without its thought",
        *(f"noise {20 * n}-{20 * n + 20} %" for n in range(5)),
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    for arm in dict.fromkeys(run.arm for run in runs):
        mine = [run for run in runs if run.arm == arm]
        levels = zip(*(run.quality.guided_by_level for run in mine), strict=True)
        table.add_row(
            ARMS[arm],
            f"{mine[0].weights:,}",
            _both([run.quality.guided for run in mine]),
            _both([run.quality.base for run in mine]),
            *(_both(list(values)) for values in levels),
        )
    return table


def samples_table(title: str, runs: Sequence[Run]) -> Table:
    """One line an arm and way of drawing."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("model", "way", "abstaining", "ticks", "recognised", "distance"):
        table.add_column(column, justify="left" if column in ("model", "way") else "right")
    for arm in dict.fromkeys(run.arm for run in runs):
        for same in zip(*(run.samples for run in runs if run.arm == arm), strict=True):
            table.add_row(
                ARMS[arm],
                _way([judged.setting for judged in same]),
                _both([100 * judged.abstaining for judged in same], ".1f") + " %",
                _both([judged.mean_ticks for judged in same], ".2f"),
                _both([100 * judged.recognised for judged in same], ".2f") + " %",
                _both([judged.distance for judged in same], ".2f"),
            )
    return table


def _way(settings: Sequence[Setting]) -> str:
    first = settings[0]
    if first.confidence_threshold:
        return "abstaining below " + ", ".join(f"{setting.confidence_threshold:g}" for setting in settings)
    return f"ending at certainty {first.certainty_threshold:g}" if first.certainty_threshold <= 1 else "free"


def _both(values: Sequence[float], form: str = ".5f") -> str:
    mean, deviation = spread(values)
    return f"{mean:{form}}±{deviation:{form}}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.diffusion", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_mnist_option(parser)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="to compare [all]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of each arm [0 1 2]")
    parser.add_argument("--updates", type=int, help="of each run, and in its name [its configuration's]")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="holds the runs' folders [%(default)s]")
    parser.add_argument(
        "--judge",
        type=Path,
        default=Path("runs/digit-judge/judge-14.safetensors"),
        help="python -m benchmarks.digit_judge trains it [%(default)s]",
    )
    parser.add_argument("--samples", type=int, default=1000, help="of each way of drawing [%(default)s]")
    parser.add_argument("--steps", type=int, default=20, help="reverse steps [%(default)s]")
    parser.add_argument("--eta", type=float, default=0.0, help="0 deterministic, 1 ancestral [%(default)s]")
    parser.add_argument("--sample-seed", type=int, default=0, help="of the samples' noise [%(default)s]")
    parser.add_argument("--certain", nargs="*", type=float, default=[0.6, 0.7], help="thoughts end there [0.6 0.7]")
    parser.add_argument("--trained", action="store_true", help="measure the runs that are there, train no other")
    parser.add_argument("--test", action="store_true", help="measure on the test rows [held-out rows]")
    add_save_option(parser, RESULTS)
    parser.add_argument(
        "--plot", type=Path, nargs="?", const=DOCS / "diffusion.png", metavar="FILE", help="draw [docs/diffusion.png]"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
