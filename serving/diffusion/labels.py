"""Which class each row of a request asks for, as numbers or by name."""

# Shapes: N rows.

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from protos import ctm_serving_pb2 as pb
from serving.diffusion.contract import LABEL, LEVEL, NEXT_LEVEL, NOISE
from serving.diffusion.model import DiffusionModel
from serving.mismatch import Mismatch, listing, quote
from serving.tensors import array, shape_text, texts

_WHAT = f"input {quote(LABEL)}"


def labels(tensors: Iterable[pb.Tensor], model: DiffusionModel, *, max_rows: int) -> NDArray[np.int64]:
    """The classes, [N].

    Raises:
        Mismatch: no label, another input beside it, or a class that there is not.
    """
    found: dict[str, pb.Tensor] = {}
    made_here = {spec.name for spec in (model.image, *model.fed_back)} | {LEVEL, NEXT_LEVEL, NOISE}
    for tensor in tensors:
        if tensor.name in made_here:
            raise Mismatch("inputs", quote(tensor.name), f"{LABEL} alone: the server makes {quote(tensor.name)} itself")
        if tensor.name != LABEL:
            raise Mismatch("inputs", quote(tensor.name), f"{LABEL}, and nothing else")
        if tensor.name in found:
            raise Mismatch("inputs", f"{quote(tensor.name)} twice", "each input once")
        found[tensor.name] = tensor
    if LABEL not in found:
        raise Mismatch("inputs", "none", f"{LABEL}, the class of each row")
    tensor, kinds = found[LABEL], ("INT64", "BYTES") if model.classes else ("INT64",)
    if tensor.datatype not in kinds:
        raise Mismatch(f"{_WHAT}, datatype", quote(tensor.datatype), " or ".join(kinds))
    if len(tensor.shape) != 1:
        raise Mismatch(f"{_WHAT}, shape", shape_text(tensor.shape), "[rows]")
    if not 1 <= tensor.shape[0] <= max_rows:
        raise Mismatch(f"{_WHAT}, rows", tensor.shape[0], f"1 to {max_rows}")
    return _numbers(tensor, model) if tensor.datatype == "INT64" else _named(tensor, model)


def _numbers(tensor: pb.Tensor, model: DiffusionModel) -> NDArray[np.int64]:
    label_N: NDArray[np.int64] = array(tensor)
    wrong_N = (label_N < 0) | (label_N >= model.num_classes)
    if wrong_N.any():
        row = int(wrong_N.argmax())
        raise Mismatch(f"{_WHAT}, row {row}", label_N[row], f"a class, 0 to {model.num_classes - 1}{_names(model)}")
    return label_N


def _named(tensor: pb.Tensor, model: DiffusionModel) -> NDArray[np.int64]:
    places = {name.encode(): place for place, name in enumerate(model.classes)}
    found = texts(tensor)
    for row, name in enumerate(found):
        if name not in places:
            got = quote(name.decode(errors="replace"))
            raise Mismatch(f"{_WHAT}, row {row}", got, f"one of {listing(model.classes)}")
    return np.array([places[name] for name in found], np.int64)


def _names(model: DiffusionModel) -> str:
    return f" ({listing(model.classes)})" if model.classes else ""
