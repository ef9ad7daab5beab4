"""Checkpoints: folders that are whole or not there, written aside and renamed, without pickle.

    update-001600/
      weights.safetensors     the weights that are served
      config.json             family, model, task, run, and where the weights come from
      trainer/
        progress.json         how far the run is, and its best evaluation
        optimiser.safetensors AdamW's means, by parameter number and name
        weights.safetensors   the weights being trained, where the served ones are their average

`best` and `last` beside a run's checkpoints are links to one of them.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctm.config import CTMConfig
from ctm.hyper import hyper_mismatch
from ctm.model import CTM

Tensors = Mapping[str, Tensor]
ASIDE = ".aside-"
NUMBERED = re.compile(r"update-(\d+)")


class CheckpointError(ValueError):
    """A folder is no checkpoint, or not one of the model that it should be of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """All that a checkpoint folder holds."""

    weights: Tensors
    config: Mapping[str, Any]
    """JSON-able: "family", "model", "task", "run", "provenance"."""
    progress: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able."""
    trainer: Mapping[str, Tensors] = field(default_factory=dict)
    """Groups of tensors by the name of their file."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts beside the weights by the name of their file, such as a tokenizer."""


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Make the folder, at once: whoever looks sees no folder, the old one or all of the new one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f"{ASIDE}{folder.name}-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    (aside / "trainer").mkdir(parents=True)
    _write_tensors(aside / "weights.safetensors", checkpoint.weights)
    _write_json(aside / "config.json", checkpoint.config)
    _write_json(aside / "trainer" / "progress.json", checkpoint.progress)
    for name, text in checkpoint.files.items():
        (aside / name).write_text(text, encoding="utf-8")
        _synchronise(aside / name)
    for name, tensors in checkpoint.trainer.items():
        _write_tensors(aside / "trainer" / f"{name}.safetensors", tensors)
    for path in (aside / "trainer", aside):
        _synchronise(path)
    if folder.exists():
        # A folder cannot take the place of another in one go; the old one is set aside first.
        old = folder.parent / f"{ASIDE}old-{folder.name}-{os.getpid()}"
        folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old)
    else:
        aside.rename(folder)
    _synchronise(folder.parent)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Everything in a checkpoint, tensors on the CPU.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    trainer = {path.stem: _read_tensors(path) for path in sorted((folder / "trainer").glob("*.safetensors"))}
    return Checkpoint(
        weights=_read_tensors(folder / "weights.safetensors"),
        config=_read_json(folder / "config.json"),
        progress=_read_json(folder / "trainer" / "progress.json"),
        trainer=trainer,
    )


def load_model(folder: Path) -> tuple[CTM, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode, and the checkpoint's config.json.

    Args:
        folder: a checkpoint, or a run's folder, which stands for its best checkpoint.

    Raises:
        CheckpointError: the folder holds no checkpoint, or its weights are not those of its configuration.
    """
    folder = find_checkpoint(folder)
    config = read_config(folder)
    if config.get("family") != "ctm":
        raise CheckpointError(f"{folder / 'config.json'}: family must be 'ctm', got {config.get('family')!r}")
    model = build_model(folder, config)
    source = folder / "weights.safetensors"
    load_weights(model, read_weights(source), source)
    return model.eval(), config


def build_model(folder: Path, config: Mapping[str, Any]) -> CTM:
    """The CTM that a checkpoint's config.json describes, its weights still drawn; raises CheckpointError."""
    if not isinstance(config.get("model", {}), dict):
        raise CheckpointError(f"{folder / 'config.json'}: model must be an object, got {config['model']!r}")
    try:
        return CTM(CTMConfig.from_dict(config["model"]))
    except KeyError as error:
        raise CheckpointError(f"{folder / 'config.json'} lacks the key {error}") from error
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: {error}") from error


def read_weights(source: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises CheckpointError when it cannot be read."""
    return _read_tensors(source)


def load_weights(model: nn.Module, weights: Tensors, source: Path) -> None:
    """Give a model all of its weights; raises CheckpointError, naming the source, unless they are exactly its own."""
    if mismatch := hyper_mismatch(model.state_dict(), weights):
        raise CheckpointError(f"{source}: {mismatch}")
    try:
        model.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        # torch tells of each weight in a line of its own.
        raise CheckpointError(f"{source}: {' '.join(str(error).split())}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a checkpoint; raises CheckpointError when there is none."""
    return _read_json(folder / "config.json")


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint that a path stands for: itself, or a run's best one, or its last while none is best."""
    for candidate in (folder, folder / "best", folder / "last"):
        if (candidate / "weights.safetensors").is_file():
            return candidate.resolve()
    raise CheckpointError(
        f"{folder} is no checkpoint and no run's folder: it holds no weights.safetensors, best or last"
    )


def point_at(link: Path, target: Path) -> None:
    """Let `link` mean `target` from now on; there is no moment at which it means nothing."""
    aside = link.parent / f"{ASIDE}{link.name}-{os.getpid()}"
    aside.unlink(missing_ok=True)
    aside.symlink_to(os.path.relpath(target, link.parent))
    os.replace(aside, link)
    _synchronise(link.parent)


def prune(checkpoints: Path, keep: int, spared: set[Path]) -> None:
    """Remove all but the newest `keep` checkpoints and the spared ones, and whatever a killed process left aside.

    Args:
        checkpoints: a folder whose checkpoints are named `update-` and a number; all else in it is left alone.
        keep: at least 1.
    """
    sweep(checkpoints)
    spared_names = {path.name for path in spared}
    numbered = [(int(match[1]), path) for path in checkpoints.iterdir() if (match := NUMBERED.fullmatch(path.name))]
    # By number: as text, update-1000000 is older than update-999999.
    for _, path in sorted(numbered)[:-keep]:
        if path.name not in spared_names:
            shutil.rmtree(path)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-made in a folder; nobody may be writing there."""
    for path in folder.glob(f"{ASIDE}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write_tensors(path: Path, tensors: Tensors) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    _synchronise(path)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _synchronise(path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _synchronise(path: Path) -> None:
    """Have a file or folder on the disk, not only on its way there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
