"""The eager program: a model built anew from a bundle's configuration and weights. The only file that knows `ctm`."""

from collections.abc import Callable
from typing import Any

from google.protobuf.json_format import MessageToDict
from safetensors import SafetensorError
from safetensors.torch import load

from ctm.config import CTMConfig
from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.language.config import LanguageConfig
from ctm.language.model import LanguageCTM
from ctm.model import CTM
from ctm.servable import Model, servable
from serving.backends.torch_programs import Graph
from serving.bundle import Bundle
from serving.mismatch import Mismatch, listing, quote

WEIGHTS = "weights.safetensors"


def load_eager(bundle: Bundle) -> dict[str, Graph]:
    """The functions, by name, of the model that the manifest's configuration and the bundle's weights make.

    Raises:
        Mismatch: a family that is not ours, no weights, or weights of another configuration.
    """
    build = _FAMILIES.get(bundle.manifest.family)
    if build is None:
        known = f"{listing(_FAMILIES)}: no other can be built"
        raise Mismatch("manifest.json: family", quote(bundle.manifest.family), known)
    if WEIGHTS not in {file.name for file in bundle.manifest.files}:
        raise Mismatch("manifest.json: files", f"no {WEIGHTS}", "the weights to build an eager model from")
    try:
        model = build(_whole(MessageToDict(bundle.manifest.config)))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        expected = f"the configuration of a model of family {bundle.manifest.family}"
        raise Mismatch("manifest.json: config", quote(str(error), 300), expected) from error
    try:
        model.load_state_dict(load(bundle.read(WEIGHTS)), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise Mismatch(WEIGHTS, quote(str(error), 300), "the weights of the manifest's configuration") from error
    form = servable(model.eval())
    graphs: dict[str, Graph] = {"encode": form.encode(), "tick": form.tick(bundle.tick_cap)}
    if (finish := form.finish()) is not None:
        graphs["finish"] = finish
    return graphs


def _build_language(config: dict[str, Any]) -> LanguageCTM:
    return LanguageCTM(CTMConfig.from_dict(config["model"]), LanguageConfig.from_dict(config["language"]))


def _build_diffusion(config: dict[str, Any]) -> EnhancedCTMDiffusion:
    return EnhancedCTMDiffusion(CTMConfig.from_dict(config["model"]), DiffusionConfig.from_dict(config["diffusion"]))


_FAMILIES: dict[str, Callable[[dict[str, Any]], Model]] = {
    "ctm": lambda config: CTM(CTMConfig.from_dict(config)),
    "diffusion": _build_diffusion,
    "language": _build_language,
}


def _whole(value: Any) -> Any:
    """A Struct holds floats alone: those that are whole were integers."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
