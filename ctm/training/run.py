"""From a configuration to a finished run: the parts are made, put together, and the loop is let go."""

import contextlib
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ctm.tasks import Task, load_task
from ctm.tasks.fetch import FetchError
from ctm.tasks.idx import IdxError
from ctm.training.config import RunConfig
from ctm.training.families import family_of
from ctm.training.family import Family
from ctm.training.interrupt import Interrupt
from ctm.training.loop import Trainer
from ctm.training.report import FolderReporter, Reporter
from ctm.training.resume import changes, holds_run, last_checkpoint, run_of
from ctm.training.settings import ConfigError, to_table

PRECISIONS = {"float32": "no", "bfloat16": "bf16"}


def train(config: RunConfig, *, resume: bool = False, command: Sequence[str] = ()) -> bool:
    """Train until all updates are done or a signal asks to stop; the run's folder holds the result.

    Args:
        resume: go on from the run's last checkpoint. Without, a folder that holds one is left alone.
        command: what the user typed, kept in the checkpoints.

    Returns:
        Whether all updates are done.

    Raises:
        ConfigError, CheckpointError, FetchError, IdxError, FileNotFoundError: the run cannot begin.
        DivergedError: it began and left the finite numbers.
    """
    changed = changes(run_of(last_checkpoint(config.folder)), config) if resume else []
    if not resume and holds_run(config.folder):
        raise ConfigError(f"{config.folder} holds a run: --resume {config.folder} goes on, --name makes another")
    _prepare_torch(config)
    with Interrupt() as interrupt, contextlib.ExitStack() as stack:
        # Without being told, accelerate takes several processes on CPUs for as many runs of one process.
        on_cpu = config.device == "cpu" or not torch.accelerator.is_available()
        accelerator = Accelerator(mixed_precision=PRECISIONS[config.precision], cpu=on_cpu)
        stack.callback(accelerator.end_training)
        # The first process fetches what must be fetched, the others find it.
        with accelerator.local_main_process_first():
            family = family_of(config, _load_task(config))
        family.check()
        _make_folder(config.folder)
        trainer = Trainer(config, family, accelerator, Reporter(), _origin(family, command))
        stack.callback(trainer.let_go)
        if resume:
            trainer.restore(last_checkpoint(config.folder))
            _remember(changed, trainer)
        if accelerator.is_main_process:
            done = trainer.progress.done
            trainer.reporter = stack.enter_context(FolderReporter(config.folder, done, config.updates))
        for sentence in (_greeting(trainer), *changed):
            trainer.reporter.say(sentence)
        finished = trainer.run(interrupt)
        trainer.reporter.say(_farewell(trainer, finished, interrupt.signal_name))
        return finished


def _load_task(config: RunConfig) -> Task:
    try:
        return load_task(config.task, config.data_dir)
    except (FetchError, IdxError):
        raise
    except ValueError as error:
        # Options of the task that only its data can show to be wrong.
        raise ConfigError(str(error)) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the run's folder {folder} cannot be made: {error.strerror}") from error


def _prepare_torch(config: RunConfig) -> None:
    """The same numbers from the same seed."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # cuBLAS reads it when it starts, and is not deterministic without.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Of use only to those who read memory before they write it; it costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # made at run time


def _origin(family: Family, command: Sequence[str]) -> dict[str, Any]:
    config, task = family.config, family.task
    run = to_table(config)
    return {
        **family.describe(),
        "task": {
            **run["task"],
            "input_name": task.input_name,
            "labels": list(task.labels),
            "prediction_shape": list(task.prediction_shape),
        },
        "run": run,
        "provenance": {
            "command": shlex.join(command),
            "seed": config.seed,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _remember(changed: Sequence[str], trainer: Trainer) -> None:
    """Have checkpoints tell what the command that began the run does not."""
    if changed:
        earlier = trainer.origin["provenance"].get("changes", [])
        after = [f"after update {trainer.progress.done}: {sentence}" for sentence in changed]
        trainer.origin["provenance"] = {**trainer.origin["provenance"], "changes": [*earlier, *after]}


def _greeting(trainer: Trainer) -> str:
    config, accelerator = trainer.config, trainer.accelerator
    weights = sum(weight.numel() for weight in trainer.model.parameters())
    begin = f"resumed after update {trainer.progress.done}" if trainer.progress.done else "begun"
    return (
        f"{config.folder} {begin}: task {config.task.name}, {weights:,} weights, {config.model.ticks} ticks, "
        f"{config.batch_size} rows an update, {accelerator.num_processes} process(es) on {accelerator.device.type}, "
        f"{config.precision}"
    )


def _farewell(trainer: Trainer, finished: bool, signal_name: str | None) -> str:
    folder: Path = trainer.config.folder
    if finished:
        return f"{folder} finished: {folder / 'best'} is update {trainer.progress.best_update}"
    return f"{folder} stopped by {signal_name} after update {trainer.progress.done}; --resume {folder} goes on"
