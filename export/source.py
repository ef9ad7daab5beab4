"""What is exported, and where it comes from: a checkpoint of ours, or a model that others trained."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.families import TOKENIZER, load_trained
from ctm.hub import download, is_repository
from ctm.model import CTM
from ctm.program import Program, TensorSpec
from ctm.reference import load_reference
from ctm.servable import Model, Servable, servable
from export.errors import ExportError

INPUT_RANGES = {"image": (0.0, 1.0), "maze": (0.0, 1.0), "sequence": (-1.0, 1.0)}
INPUT_VALUES = {"sequence": (-1.0, 1.0)}
"""What values the tasks' inputs mean anything in, by the input's name."""
CHECKPOINT_FILES = ("config.json", "weights.safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A model and what is known of it."""

    model: Model
    servable: Servable
    family: str = "ctm"
    task: str = ""
    """A word for people, such as "mnist"."""
    labels: tuple[str, ...] = ()
    """Of the last dimension of a prediction."""
    classes: tuple[str, ...] = ()
    """What a sample can be asked for, of diffusion."""
    input_range: tuple[float, float] | None = None
    """What values of the input mean anything; None: any."""
    input_values: tuple[float, ...] = ()
    """The only values that do; empty: all of the range."""
    command: str = ""
    """That trained the model."""
    seed: int = 0
    data: str = ""
    """What it was trained and measured on, in words."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what trained it."""
    data_dir: Path | None = None
    """Where training found its data."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's config.json; empty for a model that others trained."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts that belong to the model by the name of their file, such as a tokenizer."""

    @property
    def program(self) -> Program:
        """The tensors of the model's program."""
        return self.servable.program

    def __post_init__(self) -> None:
        classes = next(spec for spec in self.program.outputs if spec.role == "prediction").shape[-1]
        if len(self.labels) not in (0, classes):
            raise ExportError(f"labels must be {classes}, one for each class, got {len(self.labels)}")
        if isinstance(self.model, EnhancedCTMDiffusion) and len(self.classes) not in (0, self.model.diffusion.classes):
            known = self.model.diffusion.classes
            raise ExportError(f"labels must be {known}, one for each class of a sample, got {len(self.classes)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """What a checkpoint's config.json says of its task, as far as every task is described alike."""

    name: str = ""
    input_name: str = "input"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    data_dir: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Provenance:
    command: str = ""
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    torch: str | None = None
    python: str | None = None
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recorded:
    """What training writes beside the model; whatever is missing is not known."""

    task: _Task = field(default_factory=_Task)
    run: _Run = field(default_factory=_Run)
    provenance: _Provenance = field(default_factory=_Provenance)


def from_checkpoint(source: Path) -> Source:
    """A checkpoint, the best one of a run's folder, or one in a Hugging Face repository, ORG/REPO[@REVISION].

    Raises:
        HubError: there is no such repository, or it holds no checkpoint.
        CheckpointError: there is none, or it is damaged.
        ExportError: it does not know the shape of its input, or what it says of its origin cannot be read.
    """
    if not source.exists() and is_repository(str(source)):
        source = download(str(source), CHECKPOINT_FILES, optional=[TOKENIZER])
    trained = load_trained(source)
    model, config = trained.model, trained.config
    # Such a model thinks about noise, whatever the images of its task are, and answers with bins, not with labels.
    draws = isinstance(model, EnhancedCTMDiffusion)
    recorded = _recorded(config)
    task, provenance = recorded.task, recorded.provenance
    versions = {"torch": provenance.torch, "python": provenance.python}
    return Source(
        model=model,
        servable=_servable(model, task.input_name),
        family=trained.family,
        files=trained.files,
        task=task.name,
        labels=() if draws else task.labels,
        classes=task.labels if draws else (),
        input_range=None if draws else INPUT_RANGES.get(task.input_name),
        input_values=() if draws else INPUT_VALUES.get(task.input_name, ()),
        command=_command(provenance),
        seed=provenance.seed,
        versions={name: number for name, number in versions.items() if number},
        data_dir=None if recorded.run.data_dir is None else Path(recorded.run.data_dir),
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
        try:
            model.config = dataclasses.replace(model.config, input_shape=input_shape)
        except ValueError as error:
            raise ExportError(f"input_shape {input_shape} does not fit the model: {error}") from error
    return Source(
        model=model,
        servable=_servable(model, input_name),
        labels=tuple(labels),
        input_range=input_range,
        data=f"a reference checkpoint, {_shorten(source)}; what it was trained on is its authors' to say",
    )


def random_inputs(source: Source, rows: int) -> tuple[Tensor, ...]:
    """Seeded rows such as the model might meet, where no real ones are at hand: a tensor for each of its inputs."""
    values = random_values(source.program.inputs, rows, source.input_range)
    return tuple(value.sign() for value in values) if source.servable.config.backbone == "parity" else values


def random_values(
    specs: Sequence[TensorSpec], rows: int, real_range: tuple[float, float] | None = None
) -> tuple[Tensor, ...]:
    """Seeded values of each tensor: whole numbers in its own range, others in `real_range`, or normal without one."""
    generator = torch.Generator().manual_seed(0)
    return tuple(_random(spec, rows, real_range, generator) for spec in specs)


def _random(spec: TensorSpec, rows: int, real_range: tuple[float, float] | None, generator: torch.Generator) -> Tensor:
    shape = (rows, *spec.shape)
    if spec.datatype == "INT64" and spec.minimum is not None and spec.maximum is not None:
        return torch.randint(int(spec.minimum), int(spec.maximum) + 1, shape, generator=generator)
    if real_range is not None:
        low, high = real_range
        return low + (high - low) * torch.rand(shape, generator=generator)
    return torch.randn(shape, generator=generator)


def portable(command: Sequence[str]) -> str:
    """A command line as it may be shown: absolute paths shortened to their last part."""
    return shlex.join(
        f"{option}={_shorten(value)}" if option.startswith("-") and value else _shorten(argument)
        for argument in command
        for option, _, value in [argument.partition("=")]
    )


def _recorded(config: Mapping[str, Any]) -> _Recorded:
    try:
        return TypeAdapter(_Recorded).validate_python(config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        # What pydantic says of an object that is none names classes of ours.
        reason = "must be an object" if first["type"] == "dataclass_type" else first["msg"]
        raise ExportError(f"the checkpoint's config.json: {where}: {reason}, got {first['input']!r}") from error


def _command(provenance: _Provenance) -> str:
    """What was typed, and as comments what was changed when the run was resumed."""
    text = provenance.command
    try:
        command = portable(shlex.split(text))
    except ValueError as error:
        raise ExportError(f"the checkpoint's config.json: provenance.command: {error}, got {text!r}") from error
    return "\n".join([command, *(f"# {change}" for change in provenance.changes)])


def _shorten(argument: str) -> str:
    path = PurePath(argument)
    return path.name if path.is_absolute() else argument


def _servable(model: Model, input_name: str) -> Servable:
    try:
        return servable(model, input_name)
    except ValueError as error:
        lacks_shape = isinstance(model, CTM) and not model.config.input_shape
        raise ExportError(f"{error}; give it with --input-shape" if lacks_shape else str(error)) from error
    except RuntimeError as error:
        # What torch says of shapes that do not fit, in its first line.
        reason = str(error).partition("\n")[0]
        shape = model.config.input_shape if isinstance(model, CTM) else ()
        raise ExportError(f"input_shape {shape} does not fit the model: {reason}") from error
