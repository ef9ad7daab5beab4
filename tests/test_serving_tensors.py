"""Tensors on the wire: what goes out comes back, and what is not sound is refused before it costs anything."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from protos import ctm_serving_pb2 as pb
from serving.mismatch import Mismatch
from serving.tensors import DATATYPES, array, datatype, tensor_message, text_message, texts


@given(
    st.sampled_from(sorted(DATATYPES)).flatmap(
        lambda name: arrays(DATATYPES[name], array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    )
)
def test_an_array_comes_back_as_it_was_sent(values):
    sent = pb.Tensor.FromString(tensor_message("x", values).SerializeToString())
    back = array(sent)
    assert (back.dtype, back.shape, back.tobytes()) == (values.dtype, values.shape, values.tobytes())
    assert sent.datatype == datatype(values.dtype)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.arange(6, dtype=np.float32).reshape(2, 3).T, id="columns first"),
        pytest.param(np.arange(12, dtype=np.int16)[::2], id="every other"),
        pytest.param(np.arange(3, dtype=">f4"), id="big-endian"),
    ],
)
def test_any_layout_is_sent_row_by_row_and_little_endian(values):
    message = tensor_message("x", values)
    assert message.data == np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
    np.testing.assert_array_equal(array(message), values)


def test_a_received_array_cannot_be_written_to():
    assert not array(tensor_message("x", np.zeros(3, np.float32))).flags.writeable


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        pytest.param({"datatype": "FP8", "shape": [1], "data": b"1"}, "'FP8'", id="unknown datatype"),
        pytest.param({"datatype": "", "shape": [1], "data": b"1"}, "datatype: got ''", id="no datatype"),
        pytest.param(
            {"datatype": "FP32", "shape": [2], "data": b"1234"}, "got 4 bytes, expected 8", id="too few bytes"
        ),
        pytest.param(
            {"datatype": "FP32", "shape": [], "data": b"12345"}, "got 5 bytes, expected 4", id="too many bytes"
        ),
        pytest.param({"datatype": "FP32", "shape": [-1, -1], "data": b"1234"}, "none negative", id="negative sizes"),
        pytest.param({"datatype": "FP32", "shape": [2**40, 2**40], "data": b""}, "expected 48", id="huge shape"),
        pytest.param({"datatype": "UINT8", "shape": [2**62, 4], "data": b""}, "got 0 bytes", id="product overflows"),
        pytest.param({"datatype": "UINT8", "shape": [1] * 33, "data": b"1"}, "at most 32 dim", id="many dimensions"),
        pytest.param({"datatype": "BOOL", "shape": [2], "data": b"\x01\x02"}, "got 2, expected 0 or 1", id="no truth"),
        pytest.param({"datatype": "x" * 10**6, "shape": []}, "xxx...", id="a megabyte of datatype is not echoed"),
    ],
)
def test_what_is_refused(tensor, said):
    with pytest.raises(Mismatch, match="tensor 'input'") as refused:
        array(pb.Tensor(name="input", **tensor))
    assert said in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "U3", "O"])
def test_what_the_wire_has_no_name_for(dtype):
    with pytest.raises(Mismatch, match=r"expected one of BOOL, UINT8"):
        tensor_message("x", np.zeros(2, dtype))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="none"),
        pytest.param([b""], id="an empty one"),
        pytest.param([b"", b"a", b""], id="some empty"),
        pytest.param([b"a\0b", "日本".encode()], id="any bytes"),
        pytest.param([b"x" * 70_000], id="a long one"),
    ],
)
def test_texts_come_back_as_they_were(values):
    message = text_message("text", values)
    assert (message.datatype, list(message.shape)) == ("BYTES", [len(values)])
    assert texts(message) == values


def test_a_text_stands_after_its_length_as_open_inference_writes_it():
    assert text_message("text", ["é", b"ab"]).data == b"\x02\0\0\0\xc3\xa9\x02\0\0\0ab"


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=30), st.integers(0, 5))
def test_bytes_are_texts_or_are_refused(data, count):
    try:
        found = texts(pb.Tensor(name="text", datatype="BYTES", shape=[count], data=data))
    except Mismatch:
        return
    assert text_message("text", found).data == data
    assert len(found) == count
