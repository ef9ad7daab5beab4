"""Going on with a run: how far it is, what its checkpoint must hold, and what may not have changed since."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctm.checkpoint import Checkpoint, CheckpointError, Tensors, read_config
from ctm.training.config import RunConfig
from ctm.training.settings import ConfigError, from_table, to_table

ANOTHER_RUN = (
    "seed",
    "task.name",
    "task.mnist.held_out",
    "task.cifar10.held_out",
    "task.parity.",
    "task.maze.",
    "task.text.length",
    "task.text.held_out_rows",
    "model.",
    "language.",
    "diffusion.",
)
"""Keys, or beginnings of keys, that cannot change: what was learned and held out so far was drawn by them."""
MOVED = ("name", "output_dir")
"""Where a run lies; a folder may have been moved."""


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    done: int = 0
    """Updates."""
    best_update: int = 0
    best_score: float | None = None
    """Held-out; higher is better. None before the first evaluation."""


def read_progress(values: Mapping[str, Any], source: Path) -> Progress:
    """A checkpoint's progress; raises CheckpointError, naming the source, unless it says all of it and no more."""
    names = [field.name for field in dataclasses.fields(Progress)]
    if set(values) != set(names):
        raise CheckpointError(f"{source} must hold {', '.join(names)}, got {', '.join(values) or 'nothing'}")
    for name in ("done", "best_update"):
        # A bool is an int to Python, but no count.
        if type(values[name]) is not int or values[name] < 0:
            raise CheckpointError(f"{source}: {name} must be a whole number of at least 0, got {values[name]!r}")
    score = values["best_score"]
    if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
        raise CheckpointError(f"{source}: best_score must be a finite number or null, got {score!r}")
    return Progress(**values)


def holds_run(folder: Path) -> bool:
    """Whether a run was begun there: a link that points at nothing was once a run, too."""
    last = folder / "last"
    return last.is_symlink() or last.exists()


def last_checkpoint(folder: Path) -> Path:
    """Where a run's last checkpoint lies; raises CheckpointError when there is none."""
    last = folder / "last"
    if last.exists():
        return last.resolve()
    if last.is_symlink():
        raise CheckpointError(f"{folder} holds no checkpoint to resume from: last is {os.readlink(last)}, not there")
    raise CheckpointError(f"{folder} holds no checkpoint to resume from")


def run_of(checkpoint: Path) -> RunConfig:
    """The configuration that a checkpoint was made with.

    Raises:
        CheckpointError: it names none. ConfigError: it names one that is not allowed.
    """
    config = read_config(checkpoint)
    if not isinstance(config.get("run"), dict):
        raise CheckpointError(f"{checkpoint / 'config.json'} lacks the key 'run'")
    return from_table(config["run"], source=str(checkpoint / "config.json"))


def learning_weights(checkpoint: Checkpoint, folder: Path) -> tuple[Tensors, Path]:
    """The weights that training goes on with, and the file they are from.

    Raises:
        CheckpointError: they are missing. Where an average is served, it cannot stand in for what it averages.
    """
    if not run_of(folder).optimiser.average_decay:
        return checkpoint.weights, folder / "weights.safetensors"
    return trainer_tensors(checkpoint, folder, "weights")


def trainer_tensors(checkpoint: Checkpoint, folder: Path, name: str) -> tuple[Tensors, Path]:
    """One group of tensors that only training needs, and its file; raises CheckpointError when it is missing."""
    source = folder / "trainer" / f"{name}.safetensors"
    if name not in checkpoint.trainer:
        raise CheckpointError(f"{source} is missing, the run cannot go on without")
    return checkpoint.trainer[name], source


def changes(before: RunConfig, after: RunConfig) -> list[str]:
    """What a resumed run will do otherwise than it did, a sentence for each key.

    Raises:
        ConfigError: a key differs that would make it another run.
    """
    old, new = dict(_flat(to_table(before))), dict(_flat(to_table(after)))
    # A table that one of them has not is a key of its own there.
    changed = [key for key in {**old, **new} if key not in MOVED and old.get(key) != new.get(key)]
    for key in changed:
        if key.startswith(ANOTHER_RUN):
            raise ConfigError(f"a run cannot be resumed with another {key}: it was {old.get(key)}, got {new.get(key)}")
    return [f"from here on {key} is {new.get(key)}, it was {old.get(key)}" for key in changed]


def check_files(files: Mapping[str, str], folder: Path) -> None:
    """Whether a task's files are those that a checkpoint carries: another tokenizer's tokens mean other text.

    Raises:
        CheckpointError: the checkpoint lacks one. ConfigError: one differs.
    """
    for name, text in files.items():
        try:
            kept = (folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error}") from error
        if kept != text:
            raise ConfigError(f"a run cannot be resumed with another {name}: the data's differs from {folder / name}")


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
