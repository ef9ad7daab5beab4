"""The command `ctm-train`: a TOML file describes a run, options change it, `--resume` goes on with it."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ctm.checkpoint import CheckpointError
from ctm.language.errors import CorpusError
from ctm.language.features import Gpt2Error
from ctm.tasks.fetch import FetchError
from ctm.tasks.idx import IdxError
from ctm.training.config import RunConfig
from ctm.training.loop import DivergedError
from ctm.training.resume import last_checkpoint, run_of
from ctm.training.run import train
from ctm.training.settings import ConfigError, read_toml

PROGRAM = "ctm-train"
DESCRIPTION = """Train a Continuous Thought Machine.

  ctm-train CONFIG.toml [options]      begin the run that a file describes, changed by options
  ctm-train --resume FOLDER [options]  go on with an interrupted run
  torchrun --nproc-per-node 2 -m ctm.training CONFIG.toml [options]   the same in several processes

Every key of the file is an option; the defaults shown are those of the file. SIGTERM and Ctrl-C end the run after a
checkpoint."""
EXPECTED = (
    ConfigError,
    CheckpointError,
    CorpusError,
    Gpt2Error,
    FetchError,
    IdxError,
    DivergedError,
    FileNotFoundError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One call of `ctm-train`."""

    config: tyro.conf.Positional[Path | None] = None
    """A TOML file that describes the run, such as configs/digits.toml."""
    resume: Path | None = None
    """Folder of an interrupted run to go on with; its configuration is taken from there."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")]


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments make.

    Raises:
        ConfigError, CheckpointError: the file or the folder does not describe a run.
        SystemExit: help was asked for, or an option is wrong; it is said why.
    """
    config, resume = _find(arguments)
    if config is not None and resume is not None:
        raise ConfigError(f"either a file or --resume describes the run, got {config} and --resume {resume}")
    if resume is not None:
        # A folder may have been moved since: it is where the run goes on.
        run = dataclasses.replace(run_of(last_checkpoint(resume)), name=resume.resolve().name, output_dir=resume.parent)
    elif config is not None:
        run = read_toml(config)
    elif {"-h", "--help"} & set(arguments):
        return tyro.cli(Command, args=["--help"], prog=PROGRAM, description=DESCRIPTION)
    else:
        raise ConfigError(f"a file or --resume must describe the run; {PROGRAM} --help says more")
    command = Command(config=config, resume=resume, run=run)
    try:
        return tyro.cli(
            Command,
            args=list(arguments),
            default=command,
            prog=PROGRAM,
            description=DESCRIPTION,
            # What a file leaves out, such as a language, is no command of its own.
            config=(tyro.conf.AvoidSubcommands,),
        )
    except ValueError as error:
        # Values that are fine alone but not together; tyro reports all other mistakes itself.
        raise ConfigError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the run is done or was stopped with a checkpoint, 1 when it failed, 2 for a wrong call."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command = parse(arguments)
        train(command.run, resume=command.resume is not None, command=[PROGRAM, *arguments])
    except EXPECTED as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:  # whoever read our lines has gone; leave nothing for the interpreter to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _find(arguments: Sequence[str]) -> tuple[Path | None, Path | None]:
    """The file and the folder among the arguments: they give the other options their defaults, so come first."""
    config = next(iter(arguments), "-")
    resume = None
    for position, argument in enumerate(arguments):
        if argument == "--resume" and position + 1 < len(arguments):
            resume = Path(arguments[position + 1])
        elif argument.startswith("--resume="):
            resume = Path(argument.removeprefix("--resume="))
    return None if config.startswith("-") else Path(config), resume
