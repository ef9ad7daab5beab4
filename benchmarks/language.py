"""`python -m benchmarks.language RUN...`: what a thought about every next token is worth, in bits a byte.

Each run is one language model that `ctm-train` made: a CTM over a GPT-2, or the GPT-2 alone. Thresholds are chosen on
held-out text, each run's own; the test text is read once. Prints a table, then everything as one line of JSON.
"""

# Shapes: N tokens that were predicted, T ticks.

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.hardware import inspect
from benchmarks.report import wide_console
from ctm.checkpoint import read_config
from ctm.families import TOKENIZER, load_trained
from ctm.frontier import FrontierPoint
from ctm.language.judge import JudgedText, judge_text, text_frontier, text_quality
from ctm.language.model import LanguageCTM
from ctm.tasks import Task
from export.commit import describe_commit
from export.quality import open_task
from export.quality_text import CANDIDATES, choose_text_threshold

RESULTS = Path(__file__).with_name("results")
MOST_LOSSES = (0.002, 0.005, 0.01)
"""What a byte may cost more than at the most certain of all ticks, as shares."""
_BATCH = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """Stopping at a threshold that was chosen on held-out text to cost so little."""

    most_loss: float
    held_out: FrontierPoint
    test: FrontierPoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One language model on the same text as the others."""

    name: str
    command: str
    """That trained it."""
    updates: int
    """Of the checkpoint that is measured: the run's best."""
    window: int
    """Tokens read at most."""
    weights: int
    ticks: int
    held_out_bits: float
    """Per byte, at each token's most certain tick."""
    test_bits: float
    test_bits_by_tick: list[float]
    test_certainty_by_tick: list[float]
    test_frontier: list[FrontierPoint]
    stopping: list[Stopping]
    """Empty for a GPT-2 alone, which has one tick."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print; save and draw if asked to."""
    options = _parser().parse_args(argv)
    console, hardware = wide_console(), inspect()
    runs = []
    for folder in options.runs:
        runs.append(measure(folder, options.data_dir))
        console.print(f"{folder}: {runs[-1].test_bits:.4f} bits a byte", highlight=False)
    check_alike(runs)
    console.print(language_table(runs))
    document = {
        "benchmark": "language",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(Path(__file__).parent),
        "hardware": asdict(hardware),
        "runs": [asdict(run) for run in runs],
    }
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"language_{hardware.slug}_{datetime.now(UTC):%Y%m}.json"
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot_runs(runs, options.plot)
    print(json.dumps(document))
    return 0


def measure(folder: Path, data_dir: Path) -> Run:
    """A run's best checkpoint on the corpus that it was trained on."""
    trained = load_trained(folder)
    model = trained.model
    assert isinstance(model, LanguageCTM), f"{folder} is a model of family {trained.family}, expected language"
    task = open_task(trained.config["task"], data_dir)
    if dict(task.files) != dict(trained.files):
        raise ValueError(f"{folder} was trained on another corpus than {data_dir}: its {TOKENIZER} differs")
    held_out, test = (_judge(model, task, split) for split in ("held_out", "test"))
    quality = text_quality(test)
    return Run(
        name=folder.name,
        command=trained.config["provenance"]["command"],
        updates=read_config(folder / "best")["update"],
        window=task.input_shape[0],
        weights=sum(weight.numel() for weight in model.parameters()),
        ticks=model.config.ticks,
        held_out_bits=text_quality(held_out, []).bits_per_byte,
        test_bits=quality.bits_per_byte,
        test_bits_by_tick=quality.bits_per_byte_by_tick,
        test_certainty_by_tick=quality.certainty_by_tick,
        test_frontier=list(text_frontier(test, CANDIDATES)),
        stopping=[_stopping(held_out, test, loss) for loss in MOST_LOSSES] if model.config.ticks > 1 else [],
    )


def check_alike(runs: Sequence[Run]) -> None:
    """Raise ValueError, naming both sides, unless all runs were measured on the same tokens, as many before each."""
    first, *others = runs
    for run in others:
        if run.window != first.window:
            raise ValueError(f"{run.name} reads windows of {run.window} tokens, {first.name} of {first.window}")


def language_table(runs: Sequence[Run]) -> Table:
    """A line for each run, and for each way to stop it."""
    columns = ("run", "updates", "weights", "stopping", "bits a byte", "over all ticks", "mean ticks")
    table = Table(*columns, title="test text")
    for run in runs:
        sizes = (run.name, f"{run.updates:,}", f"{run.weights:,}")
        table.add_row(*sizes, "never", f"{run.test_bits:.4f}", "", f"{run.ticks}")
        below = ("",) * len(sizes)
        for tick in (1, run.ticks):
            table.add_row(*below, f"answer of tick {tick}", f"{run.test_bits_by_tick[tick - 1]:.4f}", "", f"{tick}")
        for stop in run.stopping:
            bits = stop.test.bits_per_byte
            assert bits is not None, "a frontier of text counts bits"
            rule = f"certainty {stop.test.threshold:g} (held out: at most {stop.most_loss:.1%})"
            loss = f"{bits / run.test_bits - 1:+.2%}"
            table.add_row(*below, rule, f"{bits:.4f}", loss, f"{stop.test.mean_ticks:.2f}")
    return table


def plot_runs(runs: Sequence[Run], path: Path) -> None:
    """Bits by tick, and what stopping early costs."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    by_tick, by_ticks_used = figure.subplots(1, 2)
    for run in runs:
        if run.ticks == 1:
            by_tick.axhline(run.test_bits, linestyle=":", color="grey", label=run.name)
            by_ticks_used.axhline(run.test_bits, linestyle=":", color="grey", label=run.name)
            continue
        by_tick.plot(range(1, run.ticks + 1), run.test_bits_by_tick, marker=".", label=run.name)
        points = [(point.mean_ticks, point.bits_per_byte) for point in run.test_frontier]
        by_ticks_used.plot(*zip(*points, strict=True), marker=".", label=run.name)
    by_tick.set(xlabel="tick", ylabel="bits per byte", title="All tokens answered at one tick")
    by_ticks_used.set(xlabel="mean ticks a token", ylabel="bits per byte", title="Stopping at a certainty")
    for axes in (by_tick, by_ticks_used):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=90, metadata={"Software": None})


def _judge(model: LanguageCTM, task: Task, split: str) -> JudgedText:
    assert task.token_bytes is not None, "a corpus knows how many bytes a token stands for"
    return judge_text(model, getattr(task, split), task.token_bytes, batch_size=_BATCH)


def _stopping(held_out: JudgedText, test: JudgedText, loss: float) -> Stopping:
    threshold = choose_text_threshold(held_out, loss)
    (there,), (here,) = text_frontier(held_out, [threshold]), text_frontier(test, [threshold])
    return Stopping(most_loss=loss, held_out=there, test=here)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--data-dir", type=Path, required=True, help="the corpus, as ctm-ingest made it")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/language_*.json")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
