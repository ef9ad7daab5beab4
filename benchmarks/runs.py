"""Runs that benchmarks train: what is there already is never taken for a run of other settings."""

from pathlib import Path

from ctm.checkpoint import read_config
from ctm.training.config import RunConfig
from ctm.training.resume import holds_run, last_checkpoint, run_of
from ctm.training.settings import ConfigError

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
