"""`python -m benchmarks.throughput`: what stopping early is worth, and what each layer of the server costs.

    a  lockstep batches, all ticks          c  this server, answers only        e  the engine alone
    b  lockstep, until the last is certain  d  this server, every tick          f  the bare graphs
                                            g  this server, ThinkStream

64 thoughts in flight in every arm. Arms take turns, so that what else the machine does meets all of them alike. Prints
a table a model, then everything as one line of JSON.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.arm import IN_FLIGHT, TRIAL_SECONDS, Arm
from benchmarks.bare_engine import EngineSetting, find_bare_engine
from benchmarks.floor import find_floor
from benchmarks.hardware import Hardware, inspect
from benchmarks.lockstep import find_all_ticks, find_stop_with_last
from benchmarks.models import Subject, shipped, synthetic
from benchmarks.options import add_data_options
from benchmarks.report import Measured, arms_table, costs, settings_table, wide_console
from benchmarks.served import WAYS, Served
from benchmarks.server import ServerProcess
from benchmarks.statistics import Slice, summarise
from export.commit import describe_commit

MODELS = ("mnist", "synthetic")
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How long to measure what."""

    arms: str = "abcdef"
    slice_seconds: float = 3.5
    rounds: int = 3
    trial_seconds: float = TRIAL_SECONDS
    """For each setting that is tried while an arm looks for its fastest."""
    warm_up_seconds: float = 1.0

    def __post_init__(self) -> None:
        if unknown := set(self.arms) - set("abcdefg"):
            raise ValueError(f"arms must be of a to g, got {', '.join(sorted(unknown))}")
        if self.rounds < 1 or min(self.slice_seconds, self.trial_seconds) <= 0:
            raise ValueError("rounds must be at least 1, and seconds more than 0")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and save if asked to."""
    options = _parser().parse_args(argv)
    console = wide_console()
    hardware = inspect()
    console.print(f"{hardware.cpu}, {hardware.cores} cores, {hardware.memory_gb} GiB", highlight=False)
    if hardware.busy:
        console.print(f"[yellow]load average {hardware.load_average:.2f}: something else is running[/yellow]")
    plan = Plan(arms=options.arms, slice_seconds=options.slice_seconds, rounds=options.rounds)
    models = {}
    with tempfile.TemporaryDirectory(prefix="ctm-bench-") as folder:
        for name in options.models:
            console.print(f"preparing {name} …")
            subject = shipped(options.store, options.data_dir) if name == "mnist" else synthetic(Path(folder) / "store")
            models[name] = measure_and_tell(subject, plan, Path(folder), console)
    document = describe(hardware, models)
    if options.save is not None:
        save(document, hardware, options.save)
    print(json.dumps(document))
    return 0


def measure_and_tell(subject: Subject, plan: Plan, folder: Path, console: Console) -> dict[str, object]:
    """Measure every arm of one model, print its tables, and give all of it back for JSON."""
    measured = measure(subject, plan, folder, console)
    title = f"{subject.bundle}: {subject.bundle.manifest.ticks} ticks, {subject.mean_ticks:.2f} used on average"
    console.print(arms_table(title, measured), settings_table(measured))
    for sentence in costs(measured):
        console.print(sentence, highlight=False)
    return {
        "bundle": str(subject.bundle),
        "ticks": subject.bundle.manifest.ticks,
        "mean_ticks": subject.mean_ticks,
        "accuracy": subject.accuracy,
        "arms": {arm.key: arm.to_json(measured) for arm in measured},
    }


def measure(subject: Subject, plan: Plan, folder: Path, console: Console) -> list[Measured]:
    """Run the arms in turns."""
    slices: dict[str, list[Slice]] = {}
    with ExitStack() as stack:
        arms = []
        for arm in make_arms(subject, plan, folder, stack):
            console.print(f"  {arm.key}  {arm.title}: {arm.setting}", highlight=False)
            if plan.warm_up_seconds:
                arm.run(plan.warm_up_seconds)
            arms.append(arm)
        for _ in range(plan.rounds):
            for arm in arms:
                slices.setdefault(arm.key, []).append(arm.run(plan.slice_seconds))
    return [Measured(arm.key, arm.title, arm.setting, summarise(slices[arm.key])) for arm in arms]


def make_arms(subject: Subject, plan: Plan, folder: Path, stack: ExitStack) -> Iterator[Arm]:
    """Every arm of the plan, at its fastest setting."""
    bundle, workload, seconds = subject.bundle, subject.workload, plan.trial_seconds
    if "a" in plan.arms:
        yield find_all_ticks(bundle, workload, seconds)
    if "b" in plan.arms:
        yield find_stop_with_last(bundle, workload, seconds)
    served = [key for key in WAYS if key in plan.arms]
    if served:
        setting = EngineSetting.default()
        server = stack.enter_context(ServerProcess(subject.store, bundle.name))
        file = folder / f"{bundle.name}.npz"
        workload.save(file)
        for key in served:
            yield Served(key, server, file, str(setting))
    if "e" in plan.arms:
        yield find_bare_engine(bundle, workload, seconds)
    if "f" in plan.arms:
        yield find_floor(bundle, subject.mean_ticks)


def describe(hardware: Hardware, models: dict[str, dict[str, object]]) -> dict[str, object]:
    """All that was found, for scripts."""
    return {
        "benchmark": "throughput",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(Path(__file__).parent),
        "hardware": asdict(hardware) | {"load_average_after": os.getloadavg()[0]},
        "in_flight": IN_FLIGHT,
        "models": models,
    }


def save(document: dict[str, object], hardware: Hardware, folder: Path) -> Path:
    """Write the results file, what_hardware_yyyymm.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"throughput_{hardware.slug}_{datetime.now(UTC):%Y%m}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    return path


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(MODELS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(MODELS)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_data_options(parser)
    parser.add_argument("--models", type=_names, default=list(MODELS), help="to measure, of mnist,synthetic")
    parser.add_argument("--arms", default=Plan().arms, help="to measure [%(default)s]")
    parser.add_argument("--slice-seconds", type=float, default=Plan().slice_seconds, help="of one turn [%(default)s]")
    parser.add_argument("--rounds", type=int, default=Plan().rounds, help="turns of each arm [%(default)s]")
    parser.add_argument(
        "--save",
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="FOLDER",
        help="write a results file [benchmarks/results]",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
