"""A published model of text behind a real server process: its graphs in ONNX Runtime, its tokenizer from the bundle."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_bundle import describe, read_manifest, write_manifest
from onnx import TensorProto, helper, numpy_helper
from scripted_text import VOCABULARY, library_tokenizer, table, tokens_of
from served import served
from test_serving_text_manifest import files_of, write_text_bundle

from serving import client as api
from serving.client import AsyncClient

BOOK = tokens_of("In the beginning God created the")
INT64, FP32 = TensorProto.INT64, TensorProto.FLOAT


def encode_graph() -> onnx.ModelProto:
    """The last token that counts; nothing that stands after it is read."""
    nodes = [
        helper.make_node("Sub", ["length", "one"], ["before"]),
        helper.make_node("Max", ["before", "zero"], ["place"]),
        helper.make_node("Unsqueeze", ["place", "axis"], ["places"]),
        helper.make_node("GatherElements", ["tokens", "places"], ["found"], axis=1),
        helper.make_node("Squeeze", ["found", "axis"], ["last"]),
    ]
    constants = {"one": np.int64(1), "zero": np.int64(0), "axis": np.array([1])}
    tokens = helper.make_tensor_value_info("tokens", INT64, ["rows", "size"])
    length = helper.make_tensor_value_info("length", INT64, ["rows"])
    return graph(nodes, constants, [tokens, length], [helper.make_tensor_value_info("last", INT64, ["rows"])])


def tick_graph(logits: np.ndarray) -> onnx.ModelProto:
    """The token's row of the table; certain on the third tick."""
    nodes = [
        helper.make_node("Add", ["ticks_done", "one"], ["next_ticks_done"]),
        helper.make_node("Gather", ["table", "last"], ["prediction"], axis=0),
        helper.make_node("Cast", ["next_ticks_done"], ["ticks"], to=FP32),
        helper.make_node("Mul", ["ticks", "step"], ["certainty"]),
    ]
    constants = {"one": np.int64(1), "table": logits, "step": np.float32(0.3)}
    arguments = [helper.make_tensor_value_info(name, INT64, ["rows"]) for name in ("last", "ticks_done")]
    results = [
        helper.make_tensor_value_info("next_ticks_done", INT64, ["rows"]),
        helper.make_tensor_value_info("prediction", FP32, ["rows", VOCABULARY]),
        helper.make_tensor_value_info("certainty", FP32, ["rows"]),
    ]
    return graph(nodes, constants, arguments, results)


def graph(nodes: list, constants: dict, arguments: list, results: list) -> onnx.ModelProto:
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "graph", arguments, results, initializer=kept)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = write_text_bundle(tmp_path / "store")
    (path / "encode.onnx").write_bytes(encode_graph().SerializeToString())
    (path / "tick.onnx").write_bytes(tick_graph(table(*BOOK)).SerializeToString())
    write_manifest(path, {**read_manifest(path), "files": [describe(file) for file in files_of(path)]})
    return tmp_path / "store"


async def test_a_bundle_of_text_is_served(store):
    prompts = ["In", "And God said, Let there be light.\nIn"]
    async with served(store, "--engine.max-links", "20") as server, AsyncClient(server.address) as client:
        links = len(BOOK) - 1
        result = await client.generate("verses", prompts, temperature=0.0, max_links=links, leading=1).result()
        with pytest.raises(api.InvalidRequest, match="max_links: got 21, expected 1 to 20"):
            await client.generate("verses", "In", max_links=21).result()
    expected = library_tokenizer().decode(BOOK[1:])
    assert result.summary.texts == (expected, expected), "of the second prompt the window slides"
    assert {answer.ticks_used for row in result.links for answer in row} == {3}
    assert [answer.label for answer in result.links[0]] == [library_tokenizer().decode([token]) for token in BOOK[1:]]
