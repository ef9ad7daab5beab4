"""Models that others trained, and ours in their form: the authors' files and Hugging Face folders, their forks' too.

The reference is github.com/SakanaAI/continuous-thought-machines; the forks are the energy head's and HyperCTM. Loading
is strict: a name or a shape that does not fit is an error that says so, never a layer left at random.
"""

import argparse
import json
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctm.config import CTMConfig
from ctm.hub import download, is_repository
from ctm.hyper import hyper_mismatch
from ctm.model import CTM
from ctm.reference_checks import check_shapes, check_sizes, check_tensors
from ctm.reference_config import (
    ReferenceFormatError,
    config_from_reference,
    config_to_reference,
    settings_from_arguments,
)
from ctm.reference_weights import has_hyper_names, weights_from_reference, weights_to_reference

__all__ = ["ReferenceFormatError", "from_reference", "load_reference", "save_reference", "to_reference"]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"

# What torch's reader raises over bytes that are torn, or are something else, besides its own refusals.
_UNREADABLE = (
    *(pickle.UnpicklingError, struct.error, EOFError, OSError, RuntimeError),
    *(AttributeError, LookupError, TypeError, ValueError),
)
_ALLOWED = "tensors, plain values and one argparse.Namespace alone"
_SAVE_ANEW = (
    "where you trust the file, load it with weights_only=False and save it anew with "
    "torch.save({'state_dict': ..., 'args': ...}, path), numbers in args being Python's own"
)


def load_reference(source: str | Path) -> CTM:
    """A reference model, in eval mode.

    Args:
        source: a `.pt` file of the authors, a folder with `config.json` and `model.safetensors`, or the id of a
            Hugging Face repository that holds these two, e.g. `SakanaAI/ctm-imagenet`, or `...@REVISION`.

    Raises:
        ReferenceFormatError: what is there is not such a model.
        FileNotFoundError: there is nothing; of a repository, HubError.
    """
    path = Path(source)
    if path.is_file():
        return from_reference(*_read_checkpoint(path))
    if path.is_dir():
        return from_reference(*_read_folder(path))
    return from_reference(*_read_folder(_download(str(source))))


def from_reference(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> CTM:
    """A model from the keyword arguments of the reference's constructor and its state dict; in eval mode.

    Raises:
        ReferenceFormatError: the settings make no model, or the weights are not those of the model they make.
    """
    check_tensors(weights)
    config = config_from_reference(settings, weights)
    check_sizes(config, weights)
    with torch.random.fork_rng(devices=[]):  # Loading draws nothing that the caller would notice.
        ours = _without_memory(config).state_dict()
        if mismatch := hyper_mismatch(ours, weights):
            raise ReferenceFormatError(mismatch)
        check_shapes(config, weights_to_reference(config, ours, hyper_names=has_hyper_names(weights)), weights)
        model = CTM(config)
    model.load_state_dict(weights_from_reference(config, model.state_dict(), weights))
    return model.eval()


def to_reference(model: CTM, *, hyper: bool | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The inverse of `from_reference`. The reference itself can build all but the backbone `digit` and hyper gates.

    Args:
        hyper: whether in the form of the hyper fork, which can hold plain models too; None means where it is needed.
    """
    hyper = model.config.hyper if hyper is None else hyper
    weights = weights_to_reference(model.config, model.state_dict(), hyper_names=hyper)
    return config_to_reference(model.config, hyper=hyper), {
        name: weight.contiguous() for name, weight in weights.items()
    }


def save_reference(model: CTM, folder: str | Path) -> None:
    """Write the two files of a Hugging Face folder."""
    settings, weights = to_reference(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.clone() for name, weight in weights.items()}, folder / WEIGHTS_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _without_memory(config: CTMConfig) -> CTM:
    """The model's names and shapes, for which no memory is asked: wrong settings can make any size of it."""
    try:
        with torch.device("meta"):
            return CTM(config)
    except (RuntimeError, OverflowError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ReferenceFormatError(f"settings of which no model can be made: {reason}") from error


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of a `.pt` file: `args` beside `model_state_dict` or `state_dict`."""
    try:
        with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except _UNREADABLE as error:
        if met := re.search(r"GLOBAL (\S+)", str(error)):
            raise ReferenceFormatError(f"{path} holds {met[1]}, allowed are {_ALLOWED}: {_SAVE_ANEW}") from error
        raise ReferenceFormatError(f"{path} is not made of {_ALLOWED}: {error}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("args"), argparse.Namespace):
        raise ReferenceFormatError(f"{path} has no `args`, an argparse.Namespace, to build the model from")
    weights = checkpoint.get("model_state_dict", checkpoint.get("state_dict"))
    if not isinstance(weights, dict):
        raise ReferenceFormatError(f"{path} has neither model_state_dict nor state_dict, but {list(checkpoint)}")
    if others := [name for name, weight in weights.items() if not isinstance(name, str)]:
        raise ReferenceFormatError(f"{path} holds weights whose names are no text: {others}")
    if others := [name for name, weight in weights.items() if not isinstance(weight, Tensor)]:
        raise ReferenceFormatError(f"{path} holds weights that are no tensors: {others}")
    return settings_from_arguments(vars(checkpoint["args"])), weights


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and weights of a Hugging Face folder."""
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}")
    try:
        settings = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS_NAME)
    except (ValueError, RecursionError, SafetensorError) as error:
        raise ReferenceFormatError(f"{folder} is not readable: {error}") from error
    if not isinstance(settings, dict):
        raise ReferenceFormatError(f"{folder / CONFIG_NAME} must hold an object, got {type(settings).__name__}")
    return settings, weights


def _download(source: str) -> Path:
    """The local copy of a Hugging Face repository, of which only the two files are fetched."""
    if not is_repository(source):
        raise FileNotFoundError(f"{source} is no file, no folder and no repository (owner/name, owner/name@revision)")
    return download(source, [CONFIG_NAME, WEIGHTS_NAME])
