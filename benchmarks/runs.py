"""Runs that benchmarks train: what is there already is never taken for a run of other settings."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ctm.checkpoint import read_config
from ctm.training.cli import parse
from ctm.training.config import RunConfig
from ctm.training.resume import holds_run, last_checkpoint, run_of
from ctm.training.settings import ConfigError

ROOT = Path(__file__).resolve().parent.parent
SAME = (
    "seed",
    "updates",
    "batch_size",
    "parts",
    "precision",
    "task",
    "model",
    "language",
    "diffusion",
    "loss",
    "optimiser",
)
"""Settings that decide what a run learns."""


def updates_done(folder: Path, asked: RunConfig) -> int | None:
    """How far the run in a folder is; None where there is none.

    Raises:
        ConfigError: it is a run of other settings than those that are asked for.
    """
    if not holds_run(folder):
        return None
    checkpoint = last_checkpoint(folder)
    there = run_of(checkpoint)
    for name in SAME:
        if (met := getattr(there, name)) != (expected := getattr(asked, name)):
            raise ConfigError(f"{folder} is a run with {name} = {met}, asked for is {expected}")
    return int(read_config(checkpoint)["update"])


def train_command(config: Path, name: str, seed: int, updates: int | None, data_dir: Path | None) -> list[str]:
    """The run of a configuration and a seed, as one would type it."""
    command = ["ctm-train", str(config), "--name", name, "--seed", str(seed), "--device", "cpu"]
    command += [] if updates is None else ["--updates", str(updates)]
    return command + ([] if data_dir is None else ["--data-dir", str(data_dir)])


def train_once(folder: Path, command: Sequence[str]) -> None:
    """Train, go on with what was interrupted, or leave what is finished as it is.

    Raises:
        ConfigError: the folder holds a run of other settings.
    """
    asked = parse(command[1:]).run
    done = updates_done(folder, asked)
    if done == asked.updates:
        return
    if done is None:
        arguments = [*command[1:], "--output-dir", str(folder.parent.resolve())]
    else:
        arguments = ["--resume", str(folder.resolve())]
    subprocess.run([sys.executable, "-m", "ctm.training", *arguments], cwd=ROOT, check=True)
