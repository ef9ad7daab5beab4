"""The eager program: a model built anew from a bundle's configuration and weights. The only file that knows `ctm`."""

from typing import Any

from google.protobuf.json_format import MessageToDict
from safetensors import SafetensorError
from safetensors.torch import load

from ctm.config import CTMConfig
from ctm.model import CTM
from ctm.program import Encode, Tick
from serving.backends.torch_programs import Graph
from serving.bundle import Bundle
from serving.mismatch import Mismatch, quote

WEIGHTS = "weights.safetensors"


def load_eager(bundle: Bundle) -> tuple[Graph, Graph]:
    """`encode` and `tick` of the model that the manifest's configuration and the bundle's weights make.

    Raises:
        Mismatch: a family that is not ours, no weights, or weights of another configuration.
    """
    if bundle.manifest.family != "ctm":
        raise Mismatch("manifest.json: family", quote(bundle.manifest.family), "ctm: no other can be built")
    if WEIGHTS not in {file.name for file in bundle.manifest.files}:
        raise Mismatch("manifest.json: files", f"no {WEIGHTS}", "the weights to build an eager model from")
    try:
        model = CTM(CTMConfig.from_dict(_whole(MessageToDict(bundle.manifest.config))))
    except (ValueError, TypeError) as error:
        raise Mismatch("manifest.json: config", quote(str(error), 300), "a CTM's configuration") from error
    try:
        model.load_state_dict(load(bundle.read(WEIGHTS)), strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise Mismatch(WEIGHTS, quote(str(error), 300), "the weights of the manifest's configuration") from error
    return Encode(model).eval(), Tick(model.eval(), bundle.tick_cap).eval()


def _whole(value: Any) -> Any:
    """A Struct holds floats alone: those that are whole were integers."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
