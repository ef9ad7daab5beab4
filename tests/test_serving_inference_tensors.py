"""Tensors of the Open Inference Protocol: raw and typed, in and out."""

import re
from typing import Any

import numpy as np
import pytest

from protos import open_inference_pb2 as oip
from serving.inference.tensors import input_tensors, write_outputs
from serving.mismatch import Mismatch
from serving.tensors import DATATYPES, array, texts

FIELDS = {"BOOL": "bool", "INT64": "int64", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64"}
FIELDS |= dict.fromkeys(("INT8", "INT16", "INT32"), "int") | dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint")


def values_of(datatype: str) -> np.ndarray:
    """Two rows, the extremes of the datatype among them."""
    dtype = DATATYPES[datatype]
    if dtype.kind == "b":
        return np.array([[True, False], [False, True]])
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array([[limits.min, 0], [1, limits.max]], dtype)


def request(*tensors: dict[str, Any], raw: list[bytes] | None = None) -> oip.ModelInferRequest:
    return oip.ModelInferRequest(inputs=tensors, raw_input_contents=raw)


def read(message: oip.ModelInferRequest) -> list[Any]:
    return input_tensors(message, singles={"one"}, most_inputs=3, most_values=16)


def typed(datatype: str = "FP32", shape: Any = (2,), name: str = "x", **contents: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "contents": oip.InferTensorContents(**contents)}


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_comes_in_raw_and_typed_and_goes_out_as_both(datatype):
    values = values_of(datatype)
    described = {"name": "x", "datatype": datatype, "shape": values.shape}
    (tensor,) = read(request(described, raw=[values.tobytes()]))
    np.testing.assert_array_equal(array(tensor), values)
    assert tensor.name == "x"
    if datatype in FIELDS:
        field = f"{FIELDS[datatype]}_contents"
        (tensor,) = read(request(typed(datatype, values.shape, **{field: values.ravel().tolist()})))
        np.testing.assert_array_equal(array(tensor), values)
        response = oip.ModelInferResponse()
        write_outputs(response, {"x": values}, raw=False)
        assert list(getattr(response.outputs[0].contents, field)) == values.ravel().tolist()
        assert not response.raw_output_contents
    response = oip.ModelInferResponse()
    write_outputs(response, {"x": values}, raw=True)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == (datatype, [2, 2])
    assert response.raw_output_contents == [values.tobytes()]


def test_texts_come_in_raw_and_typed_and_go_out_as_both():
    words = ["", "日", "a b"]
    encoded = [word.encode() for word in words]
    (tensor,) = read(request(typed("BYTES", (3,), bytes_contents=encoded)))
    assert texts(tensor) == encoded
    (same,) = read(request({"name": "x", "datatype": "BYTES", "shape": [3]}, raw=[tensor.data]))
    assert texts(same) == encoded
    for raw in (True, False):
        response = oip.ModelInferResponse()
        write_outputs(response, {"x": words}, raw=raw)
        assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [3])
        found = response.raw_output_contents if raw else response.outputs[0].contents.bytes_contents
        assert list(found) == ([tensor.data] if raw else encoded)


def test_half_precision_makes_all_outputs_raw():
    response = oip.ModelInferResponse()
    write_outputs(response, {"x": np.ones(1, np.float16), "y": np.ones(2, np.float32)}, raw=False)
    assert [len(data) for data in response.raw_output_contents] == [2, 8]
    assert not any(output.HasField("contents") for output in response.outputs)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        pytest.param("one", [2], [2], id="a value a row"),
        pytest.param("one", [2, 1], [2], id="in a shape of its own"),
        pytest.param("one", [1, 2], [1, 2], id="two a row"),
        pytest.param("x", [2, 1], [2, 1], id="of an input that has a shape"),
    ],
)
def test_a_single_value_may_have_a_shape_of_its_own(name, shape, expected):
    (tensor,) = read(request({"name": name, "datatype": "INT64", "shape": shape}, raw=[bytes(16)]))
    assert list(tensor.shape) == expected


def test_fields_of_a_newer_protocol_are_no_values():
    contents = oip.InferTensorContents(fp32_contents=[1.0, 2.0])
    contents.MergeFromString(b"\xa2\x06\x04abcd")  # field 100, four bytes
    (tensor,) = read(request({"name": "x", "datatype": "FP32", "shape": [2], "contents": contents}))
    assert array(tensor).tolist() == [1.0, 2.0]


SHARED = {"shared_memory_region": oip.InferParameter(string_param="mine")}


@pytest.mark.parametrize(
    ("message", "said"),
    [
        pytest.param(request(typed(), raw=[b"", b""]), "raw_input_contents: got 2, expected 1, one", id="too many raw"),
        pytest.param(
            request(typed(fp32_contents=[1, 2]), raw=[bytes(8)]), "'x': got contents and raw_input_contents", id="both"
        ),
        pytest.param(request(typed()), r"'x', FP32 \[2\]: got 0 values, expected 2", id="no contents"),
        pytest.param(request(typed(fp32_contents=[1.0])), "got 1 values, expected 2", id="too few values"),
        pytest.param(request(typed(int_contents=[1, 2])), "got int_contents, expected fp32_contents", id="wrong field"),
        pytest.param(request(typed("FP16")), "'FP16', expected one of .*raw_input_contents", id="half precision"),
        pytest.param(request(typed("BF16")), "datatype: got 'BF16', expected one of BOOL", id="unknown datatype"),
        pytest.param(
            request(typed("INT8", int_contents=[1, 128])),
            "int_contents: got 128, expected values of INT8",
            id="too large",
        ),
        pytest.param(
            request(typed("UINT8", uint_contents=[1, 256])),
            "got 256, expected values of UINT8",
            id="too large unsigned",
        ),
        pytest.param(
            request(typed("INT64", (17,), int64_contents=[0] * 17)),
            "'x': got 17 values, expected at most 16",
            id="many",
        ),
        pytest.param(request(typed(shape=[1] * 33)), "got 33 dimensions, expected at most 32", id="dimensions"),
        pytest.param(request(typed(shape=[2**62, 2**62])), "got 0 values, expected", id="absurd shape"),
        pytest.param(request(*[typed()] * 4), "inputs: got 4, expected at most 3", id="too many inputs"),
        pytest.param(
            request({"name": "x", "parameters": SHARED}),
            "parameters: got 'shared_memory_region', expected none",
            id="shared",
        ),
    ],
)
def test_contents_that_do_not_fit_are_refused_with_what_was_met_and_expected(message, said):
    with pytest.raises(Mismatch) as raised:
        read(message)
    assert re.search(said, str(raised.value)), raised.value
