"""What is exported, and where it comes from: a checkpoint of ours, or a model that others trained."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from ctm.checkpoint import load_model
from ctm.model import CTM
from ctm.program import Program, specify
from ctm.reference import load_reference
from export.errors import ExportError

INPUT_RANGES = {"image": (0.0, 1.0), "sequence": (-1.0, 1.0)}
"""What values the tasks' inputs mean anything in, by the input's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A model and what is known of it."""

    model: CTM
    program: Program
    task: str = ""
    """A word for people, such as "mnist"."""
    labels: tuple[str, ...] = ()
    input_range: tuple[float, float] | None = None
    """What values of the input mean anything; None: any."""
    command: str = ""
    """That trained the model."""
    seed: int = 0
    data: str = ""
    """What it was trained and measured on, in words."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what trained it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's config.json; empty for a model that others trained."""

    def __post_init__(self) -> None:
        classes = self.model.config.answer_shape[-1]
        if len(self.labels) not in (0, classes):
            raise ExportError(f"labels must be {classes}, one for each class, got {len(self.labels)}")


def from_checkpoint(folder: Path) -> Source:
    """A checkpoint, or the best one of a run's folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ExportError: it does not know the shape of its input.
    """
    model, config = load_model(folder)
    task, provenance = config.get("task", {}), config.get("provenance", {})
    input_name = task.get("input_name", "input")
    return Source(
        model=model,
        program=_specify(model, input_name),
        task=task.get("name", ""),
        labels=tuple(task.get("labels", ())),
        input_range=INPUT_RANGES.get(input_name),
        command=portable(shlex.split(provenance.get("command", ""))),
        seed=int(provenance.get("seed", 0)),
        versions={name: str(provenance[name]) for name in ("torch", "python") if name in provenance},
        config=config,
    )


def from_reference(
    source: str,
    *,
    input_shape: tuple[int, ...],
    input_name: str = "image",
    input_range: tuple[float, float] | None = None,
    labels: Sequence[str] = (),
) -> Source:
    """A reference checkpoint: a file, a folder, or the id of a Hugging Face repository.

    Args:
        input_shape: of one row, which reference checkpoints do not hold; () if ours was saved in their form and does.

    Raises:
        ReferenceFormatError, FileNotFoundError: there is no such checkpoint.
        ExportError: the shape is missing or does not fit the model, or the labels do not.
    """
    model = load_reference(source)
    if input_shape:
        model.config = dataclasses.replace(model.config, input_shape=input_shape)
    return Source(
        model=model,
        program=_specify(model, input_name),
        labels=tuple(labels),
        input_range=input_range,
        data=f"a reference checkpoint, {_shorten(source)}; what it was trained on is its authors' to say",
    )


def random_inputs(source: Source, rows: int) -> Tensor:
    """Seeded rows such as the model might meet, where no real ones are at hand."""
    config = source.model.config
    generator = torch.Generator().manual_seed(0)
    if config.backbone == "parity":
        return torch.randn(rows, *config.input_shape, generator=generator).sign()
    if source.input_range is not None:
        low, high = source.input_range
        return low + (high - low) * torch.rand(rows, *config.input_shape, generator=generator)
    return torch.randn(rows, *config.input_shape, generator=generator)


def portable(command: Sequence[str]) -> str:
    """A command line as it may be shown: absolute paths shortened to their last part."""
    return shlex.join(
        f"{option}={_shorten(value)}" if option.startswith("-") and value else _shorten(argument)
        for argument in command
        for option, _, value in [argument.partition("=")]
    )


def _shorten(argument: str) -> str:
    path = PurePath(argument)
    return path.name if path.is_absolute() else argument


def _specify(model: CTM, input_name: str) -> Program:
    try:
        return specify(model, input_name)
    except ValueError as error:
        raise ExportError(f"{error}; give it with --input-shape") from error
    except RuntimeError as error:
        # What torch says of shapes that do not fit, in its first line.
        reason = str(error).partition("\n")[0]
        raise ExportError(f"input_shape {model.config.input_shape} does not fit the model: {reason}") from error
