"""The families of models: what a checkpoint says it holds, and how that is built again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctm.checkpoint import CheckpointError, build_model, find_checkpoint, load_weights, read_config, read_weights
from ctm.config import CTMConfig
from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.language.config import LanguageConfig
from ctm.language.model import LanguageCTM
from ctm.servable import Model

FAMILIES = ("ctm", "language", "diffusion")
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A trained model and what its checkpoint says of it."""

    model: Model
    """In evaluation mode."""
    family: str
    config: Mapping[str, Any]
    """The checkpoint's config.json."""
    files: Mapping[str, str]
    """Texts that belong to the model by the name of their file."""


def load_trained(folder: Path) -> Trained:
    """The model of a checkpoint, of whatever family.

    Args:
        folder: a checkpoint, or a run's folder, which stands for its best checkpoint.

    Raises:
        CheckpointError: the folder holds no checkpoint, or its weights are not those of its configuration.
    """
    folder = find_checkpoint(folder)
    config = read_config(folder)
    family = config.get("family")
    if family not in FAMILIES:
        known = ", ".join(map(repr, FAMILIES))
        raise CheckpointError(f"{folder / 'config.json'}: family must be one of {known}, got {family!r}")
    model: Model
    match family:
        case "language":
            model = _build_language(folder, config)
        case "diffusion":
            model = _build_diffusion(folder, config)
        case _:
            model = build_model(folder, config)
    source = folder / "weights.safetensors"
    load_weights(model, read_weights(source), source)
    return Trained(model=model.eval(), family=family, config=config, files=_files(folder, family))


def _build_language(folder: Path, config: Mapping[str, Any]) -> LanguageCTM:
    core, language = _tables(folder, config, "language")
    try:
        return LanguageCTM(CTMConfig.from_dict(core), LanguageConfig.from_dict(language))
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error


def _build_diffusion(folder: Path, config: Mapping[str, Any]) -> EnhancedCTMDiffusion:
    core, diffusion = _tables(folder, config, "diffusion")
    try:
        return EnhancedCTMDiffusion(CTMConfig.from_dict(core), DiffusionConfig.from_dict(diffusion))
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error


def _tables(folder: Path, config: Mapping[str, Any], beside: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What a checkpoint says of the CTM, and of what is around it."""
    for name in ("model", beside):
        if not isinstance(config.get(name), dict):
            raise CheckpointError(f"{folder / 'config.json'}: {name} must be an object, got {config.get(name)!r}")
    return config["model"], config[beside]


def _files(folder: Path, family: str) -> dict[str, str]:
    if family != "language":
        return {}
    try:
        return {TOKENIZER: (folder / TOKENIZER).read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / TOKENIZER} cannot be read: {error}") from error
