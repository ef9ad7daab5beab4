"""`python -m benchmarks.energy_stopping`: certainty against energy as the reason to stop, at equal accuracy.

A model is trained for each way of learning to predict beside the energies and for each seed, unless its run is there
already. Thresholds are chosen on its held-out rows, each rule with the others switched off; its test rows are read
once. Prints tables, then everything as one line of JSON.
"""

# Shapes: N rows, T ticks.

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import numpy as np

from benchmarks.energy_report import draw, tables
from benchmarks.hardware import inspect
from benchmarks.options import add_mnist_option
from benchmarks.runs import updates_done
from ctm.calibration import calibration_error, confidence_of_energy, separation
from ctm.checkpoint import load_model
from ctm.energy import StopRule, delta_candidates, energy_candidates, energy_point, judge_with_energy
from ctm.frontier import Floats, most_certain_accuracy
from ctm.judge import Judged
from ctm.tasks import Rows, load_task
from ctm.training.config import LossConfig, RunConfig
from ctm.training.run import train
from ctm.training.settings import read_toml
from export.commit import describe_commit
from export.energy import choose_energy
from export.quality import CANDIDATES, choose_threshold

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results")
LOSSES = (0.0, 0.001, 0.003, 0.005, 0.01)
"""Of accuracy, against the most certain of all ticks; as shares."""
BESIDE: tuple[str, ...] = get_args(get_type_hints(LossConfig)["energy_beside"])


class Thoughts(NamedTuple):
    """What a model did with some rows, all ticks."""

    judged: Judged
    energy: Floats

    @property
    def values(self) -> tuple[Floats, Floats, Floats]:
        return self.judged.certainty, self.energy, self.judged.correct

    @property
    def accuracy(self) -> float:
        """Of the most certain of all ticks."""
        return most_certain_accuracy(self.judged.certainty, self.judged.correct)


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is not there yet, measure, print, and save if asked to."""
    options = _parser().parse_args(argv)
    config = read_toml(options.config)
    if options.data_dir is not None and config.task.name == "mnist":
        config = replace(config, data_dir=options.data_dir)
    found = {
        beside: [study(prepare(config, beside, seed, options), config) for seed in options.seeds]
        for beside in options.beside
    }
    hardware = inspect()
    document: dict[str, Any] = {
        "benchmark": "energy_stopping",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(Path(__file__).parent),
        "hardware": asdict(hardware),
        "config": options.config.name,
        "ticks": config.model.ticks,
        "energy_scale": config.loss.energy_scale,
        "seeds": options.seeds,
        "losses": LOSSES,
        "beside": found,
    }
    print(tables(document), file=sys.stderr)
    if options.plot is not None:
        draw(document, options.plot)
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        name = f"energy_{config.task.name}_{hardware.slug}_{datetime.now(UTC):%Y%m}.json"
        (options.save / name).write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))
    return 0


def prepare(config: RunConfig, beside: str, seed: int, options: argparse.Namespace) -> Path:
    """The best checkpoint of one run, trained now unless it was before.

    Raises:
        ConfigError: its folder holds a run of other settings.
    """
    loss = replace(config.loss, energy_beside=beside)  # type: ignore[arg-type]  # one of BESIDE
    run = replace(
        config, name=f"{config.name}-{beside}-{seed}", output_dir=options.runs, seed=seed, loss=loss, threads=1
    )
    done = updates_done(run.folder, run)
    if done != run.updates:
        train(run, resume=done is not None, command=["python", "-m", "benchmarks.energy_stopping"])
    return run.folder / "best"


def study(checkpoint: Path, config: RunConfig) -> dict[str, Any]:
    """One model: rules chosen on its held-out rows, and what they come to on its test rows."""
    model, _ = load_model(checkpoint)
    task = load_task(config.task, config.data_dir)
    held_out, test = think(model, task.held_out), think(model, task.test)
    margin = config.loss.energy_margin
    return {
        "held_out_accuracy": held_out.accuracy,
        "test_accuracy": test.accuracy,
        "held_out_accuracy_by_tick": held_out.judged.correct.mean(axis=0, dtype=np.float64).tolist(),
        "separation": _known(separation(held_out.energy, held_out.judged.correct)),
        "certainty_separation": _known(separation(-held_out.judged.certainty, held_out.judged.correct)),
        "energy_calibration_error": calibration_error(
            confidence_of_energy(held_out.energy, margin), held_out.judged.correct
        ).tolist(),
        "rules": {
            name: [_outcome(choose(held_out, loss), held_out, test) for loss in LOSSES]
            for name, choose in RULES.items()
        },
    }


def think(model: Any, rows: Rows) -> Thoughts:
    judged, energy_NT = judge_with_energy(model, rows)
    assert energy_NT is not None, "the configuration gives the model an energy head"
    return Thoughts(judged, energy_NT)


def loosest(thoughts: Thoughts, rules: Iterable[StopRule], loss: float) -> StopRule:
    """The last of ever looser rules before one of them loses more; all ticks where the first one does."""
    chosen = StopRule()
    for rule in rules:
        if energy_point(*thoughts.values, rule).accuracy < thoughts.accuracy - loss:
            break
        chosen = rule
    return chosen


def _by_certainty(held_out: Thoughts, loss: float) -> StopRule:
    return loosest(held_out, (StopRule(certainty=value) for value in reversed(CANDIDATES)), loss)


def _by_energy(held_out: Thoughts, loss: float) -> StopRule:
    return loosest(held_out, (StopRule(energy=value) for value in energy_candidates(held_out.energy)), loss)


def _by_settling(held_out: Thoughts, loss: float) -> StopRule:
    return loosest(held_out, (StopRule(delta=value) for value in delta_candidates(held_out.energy)), loss)


def _by_either(held_out: Thoughts, loss: float) -> StopRule:
    certainty = choose_threshold(held_out.judged, loss)
    energy = choose_energy(held_out.judged, held_out.energy, loss, certainty)
    return StopRule(certainty=certainty) if energy is None else StopRule(certainty=certainty, energy=energy)


RULES: Mapping[str, Callable[[Thoughts, float], StopRule]] = {
    "certainty": _by_certainty,
    "energy": _by_energy,
    "energy settled": _by_settling,
    "either": _by_either,
}
"""By what thoughts stop: how the rule is found on held-out rows."""


def _outcome(rule: StopRule, held_out: Thoughts, test: Thoughts) -> dict[str, Any]:
    there, here = energy_point(*held_out.values, rule), energy_point(*test.values, rule)
    return {
        "rule": {name: value for name, value in asdict(rule).items() if np.isfinite(value)},
        "held_out_accuracy": there.accuracy,
        "held_out_ticks": there.mean_ticks,
        "accuracy": here.accuracy,
        "ticks": here.mean_ticks,
        "share_energy": here.share_energy,
    }


def _known(values_T: Floats) -> list[float | None]:
    """JSON knows no NaN."""
    return [None if np.isnan(value) else float(value) for value in values_T]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.energy_stopping", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    digits = ROOT / "configs" / "digits-energy.toml"
    parser.add_argument("--config", type=Path, default=digits, help="run to repeat [configs/digits-energy.toml]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one model each [0 1 2]")
    parser.add_argument(
        "--beside", nargs="+", choices=BESIDE, default=list(BESIDE), help="see loss.energy_beside [all]"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/energy"), help="holds the runs [%(default)s]")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw mean ticks by allowed loss")
    parser.add_argument(
        "--save",
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="FOLDER",
        help="write a results file [benchmarks/results]",
    )
    add_mnist_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
