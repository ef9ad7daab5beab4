"""Tensors on the wire: a name, a datatype as Open Inference names it, a shape, row-major little-endian bytes."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from math import prod

import numpy as np

from protos import ctm_serving_pb2 as pb
from serving.mismatch import Mismatch, listing, quote
from serving.request import Array

DATATYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def datatype(dtype: np.dtype[np.generic]) -> str:
    """The wire's name of a numpy dtype.

    Raises:
        Mismatch: the wire has none.
    """
    name = _NAMES.get(dtype.newbyteorder("="))
    if name is None:
        raise Mismatch("datatype", dtype, f"one of {listing(DATATYPES)}")
    return name


def shape_text(shape: Iterable[int]) -> str:
    """A shape for a sentence, cut short when it is absurdly long: `[2, 1, 28, 28]`."""
    return quote(list(islice(shape, 33)))


def array(tensor: pb.Tensor) -> Array:
    """The tensor as a read-only view of its bytes, which are copied out of the message once.

    Raises:
        Mismatch: an unknown datatype, a negative dimension, or bytes that do not fill the shape. Nothing is allocated
            before these are known to agree.
    """
    what = f"tensor {quote(tensor.name)}"
    dtype = DATATYPES.get(tensor.datatype)
    if dtype is None:
        raise Mismatch(f"{what}, datatype", quote(tensor.datatype), f"one of {listing(DATATYPES)}")
    if len(tensor.shape) > 32 or any(size < 0 for size in tensor.shape):
        raise Mismatch(f"{what}, shape", shape_text(tensor.shape), "at most 32 dimensions, none negative")
    shape, data = tuple(tensor.shape), tensor.data
    size = prod(shape) * dtype.itemsize
    if len(data) != size:
        raise Mismatch(f"{what}, {tensor.datatype} {shape_text(shape)}", f"{len(data)} bytes", f"{size} bytes")
    values: Array = np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)
    if dtype == np.bool_ and values.view(np.uint8).max(initial=0) > 1:
        raise Mismatch(f"{what}, BOOL bytes", values.view(np.uint8).max(), "0 or 1")
    return values


def texts(tensor: pb.Tensor) -> list[bytes]:
    """The texts of a BYTES tensor of one dimension: each stands after its length in bytes, as four bytes.

    Raises:
        Mismatch: the lengths do not fill the bytes, or there are not as many texts as the shape says.
    """
    what, data, (count,) = f"tensor {quote(tensor.name)}, BYTES", tensor.data, tensor.shape
    found: list[bytes] = []
    place = 0
    while place < len(data) and len(found) < count:
        begin = place + 4
        place = begin + int.from_bytes(data[place:begin], "little")
        if place > len(data) or begin > len(data):
            raise Mismatch(
                f"{what}, text {len(found)}", f"an end at byte {place}", f"at most {len(data)}, all there are"
            )
        found.append(data[begin:place])
    if len(found) != count or place != len(data):
        got = f"{len(found)} texts in {place} of {len(data)} bytes"
        raise Mismatch(f"{what} {shape_text(tensor.shape)}", got, f"{count} texts in all of them")
    return found


def text_message(name: str, values: Sequence[str | bytes]) -> pb.Tensor:
    """Texts as a BYTES tensor of one dimension."""
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    data = b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
    return pb.Tensor(name=name, datatype="BYTES", shape=[len(encoded)], data=data)


def tensor_message(name: str, values: Array) -> pb.Tensor:
    """An array of any layout as a message.

    Raises:
        Mismatch: the wire has no such datatype.
    """
    message = pb.Tensor()
    fill(message, name, values)
    return message


def fill(message: pb.Tensor, name: str, values: Array) -> None:
    """Write an array into a message that stands already, for those who write thousands a second."""
    message.CopyFrom(_template(name, values.dtype, values.shape))
    message.data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


@lru_cache(maxsize=256)
def _template(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> pb.Tensor:
    return pb.Tensor(name=name, datatype=datatype(dtype), shape=shape)
