"""Tensors of the Open Inference Protocol: raw bytes, or values in the field that their datatype has."""

from collections.abc import Container, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from protos import ctm_serving_pb2 as pb
from protos import open_inference_pb2 as oip
from serving.mismatch import Mismatch, listing, quote
from serving.request import Array
from serving.tensors import DATATYPES, datatype, shape_text, text_message

TEXT = "BYTES"
Columns = Mapping[str, Array | list[str]]
"""What a response holds, by name: numbers of any shape, or texts of one dimension."""

_HTTP_ONLY = ("binary_data", "binary_data_size")
_MOST_DIMENSIONS = 32

InputTensor = oip.ModelInferRequest.InferInputTensor

_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    TEXT: "bytes_contents",
}
_PACKED = ("BOOL", "FP32", "FP64")
"""Lie in a serialised message as they lie in memory."""


def input_tensors(
    message: oip.ModelInferRequest, *, singles: Container[str], most_inputs: int, most_values: int
) -> list[pb.Tensor]:
    """The inputs as `Think` takes them, their bytes copied once.

    Args:
        singles: inputs of one value a row, [N], which may be sent as [N, 1] too: Triton's tools know no other.
        most_inputs, most_values: what the model could have any use for; more are not even looked at.

    Raises:
        Mismatch: contents that do not fit what is said of them.
    """
    raw, inputs = message.raw_input_contents, message.inputs
    if len(inputs) > most_inputs:
        raise Mismatch("inputs", len(inputs), f"at most {most_inputs}")
    if raw and len(raw) != len(inputs):
        raise Mismatch("raw_input_contents", len(raw), f"{len(inputs)}, one for each of inputs, or none")
    for tensor in inputs:
        if len(tensor.shape) > _MOST_DIMENSIONS:
            got = f"{len(tensor.shape)} dimensions"
            raise Mismatch(f"input {quote(tensor.name)}, shape", got, f"at most {_MOST_DIMENSIONS}")
        check_tensor_parameters(f"input {quote(tensor.name)}", tensor.parameters)
        if raw and tensor.HasField("contents"):
            raise Mismatch(f"input {quote(tensor.name)}", "contents and raw_input_contents", "one of them")
    contents = list(raw) if raw else [_typed(tensor, most_values) for tensor in inputs]
    return [
        pb.Tensor(name=tensor.name, datatype=tensor.datatype, shape=_shape(tensor, singles), data=data)
        for tensor, data in zip(inputs, contents, strict=True)
    ]


def check_tensor_parameters(what: str, parameters: Mapping[str, oip.InferParameter]) -> None:
    """Refuse what would change where a tensor lies or what it holds, and let pass how it might be sent over HTTP.

    Raises:
        Mismatch: there is such a parameter.
    """
    for name in parameters:
        if name not in _HTTP_ONLY:
            raise Mismatch(f"{what}, parameters", quote(name), "none: contents stand in the message, as they are")


def write_outputs(response: oip.ModelInferResponse, columns: Columns, *, raw: bool) -> None:
    """Add tensors to a response, all raw or all typed; FP16 has no field, and makes them raw."""
    raw = raw or any(isinstance(values, np.ndarray) and values.dtype == np.float16 for values in columns.values())
    for name, values in columns.items():
        output = response.outputs.add(name=name)
        if isinstance(values, list):
            output.datatype = TEXT
            output.shape.append(len(values))
        else:
            output.datatype = datatype(values.dtype)
            output.shape.extend(values.shape)
        if raw:
            response.raw_output_contents.append(_bytes(values))
        else:
            getattr(output.contents, _FIELDS[output.datatype]).extend(_items(values))


def _shape(tensor: InputTensor, singles: Container[str]) -> Sequence[int]:
    shape = tensor.shape
    return shape[:1] if len(shape) == 2 and shape[1] == 1 and tensor.name in singles else shape


def _typed(tensor: InputTensor, most_values: int) -> bytes:
    """The contents of a tensor as raw bytes."""
    what, kind = f"input {quote(tensor.name)}", tensor.datatype
    if kind not in _FIELDS:
        without = f"{listing(_FIELDS)}; FP16 is sent in raw_input_contents"
        raise Mismatch(f"{what}, datatype", quote(kind), f"one of {without}")
    field = _FIELDS[kind]
    if others := [found.name for found, _ in tensor.contents.ListFields() if found.name != field]:
        raise Mismatch(f"{what}, contents of {kind}", listing(others), field)
    values = getattr(tensor.contents, field)
    size = prod(tensor.shape)
    if len(values) != size:
        raise Mismatch(f"{what}, {kind} {shape_text(tensor.shape)}", f"{len(values)} values", f"{size} values")
    if size > most_values:
        raise Mismatch(what, f"{size} values", f"at most {most_values}")
    if kind == TEXT:
        return text_message(tensor.name, values).data
    dtype = DATATYPES[kind]
    if kind in _PACKED:
        return _packed(tensor.contents, size * dtype.itemsize)
    wide = np.fromiter(values, np.uint64 if kind == "UINT64" else np.int64, size)
    narrow = wide.astype(dtype.newbyteorder("<"))
    if (wrong := narrow != wide).any():
        raise Mismatch(f"{what}, {field}", wide[wrong][0], f"values of {kind}")
    return narrow.tobytes()


def _packed(contents: oip.InferTensorContents, size: int) -> bytes:
    """The values of the only field there is, as many bytes: a loop in Python would take seconds for a large image."""
    contents.DiscardUnknownFields()
    return contents.SerializeToString()[-size:] if size else b""


def _bytes(values: Array | list[str]) -> bytes:
    if isinstance(values, list):
        return text_message("", values).data
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _items(values: Array | list[str]) -> Sequence[Any]:
    return [text.encode() for text in values] if isinstance(values, list) else values.ravel().tolist()
