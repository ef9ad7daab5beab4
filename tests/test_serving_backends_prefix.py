"""Inputs of which a prefix counts: cut to a bucket before they are encoded, and nothing else of a thought changes."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx.parser
import pytest
import torch

from serving.backends.base import Backend
from serving.backends.onnx_runtime import OnnxRuntimeBackend
from serving.backends.prefix import all_sizes, by_sizes, cuts
from serving.backends.torch_programs import TorchBackend
from serving.mismatch import Mismatch
from serving.program import Program, TensorSpec

WINDOW = 8
FP32, INT64 = np.dtype(np.float32), np.dtype(np.int64)
CONTEXT = (TensorSpec("seen", FP32, (WINDOW,)), TensorSpec("size", FP32, ()))
OUTPUTS = (TensorSpec("prediction", FP32, (WINDOW,)), TensorSpec("certainty", FP32, ()))
PROGRAM = Program(
    inputs=(
        TensorSpec("tokens", INT64, (WINDOW,), buckets=(2, 4, WINDOW)),
        TensorSpec("length", INT64, (), minimum=1, maximum=WINDOW, length_of="tokens"),
    ),
    context=CONTEXT,
    state=(TensorSpec("ticks_done", INT64, ()),),
    start={"ticks_done": np.zeros((), np.int64)},
    prediction=OUTPUTS[0],
    certainty=OUTPUTS[1],
    outputs=OUTPUTS,
)
"""It predicts the tokens that count, and is as certain as the size that they were cut to, over ten."""

ENCODE = """<ir_version: 8, opset_import: ["" : 17]>
encode (int64[rows, {size}] tokens, int64[rows] length) => (float[rows, 8] seen, float[rows] size) {
    zero = Constant <value = float {0.0}> ()
    one = Constant <value = int64[1] {1}> ()
    window = Constant <value = int64[1] {8}> ()
    nothing = Constant <value = int64[3] {0, 0, 0}> ()
    places = Constant <value = int64[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
    width = Shape <start = 1, end = 2> (tokens)
    lacking = Sub (window, width)
    pads = Concat <axis = 0> (nothing, lacking)
    numbers = Cast <to = 1> (tokens)
    padded = Pad (numbers, pads)
    column = Unsqueeze (length, one)
    counts = Less (places, column)
    seen = Where (counts, padded, zero)
    rows_only = Shape (length)
    wide = Expand (width, rows_only)
    size = Cast <to = 1> (wide)
}"""
TICK = """<ir_version: 8, opset_import: ["" : 17]>
tick (float[rows, 8] seen, float[rows] size, int64[rows] ticks_done)
    => (int64[rows] next_ticks_done, float[rows, 8] prediction, float[rows] certainty) {
    one = Constant <value = int64 {1}> ()
    ten = Constant <value = float {10.0}> ()
    next_ticks_done = Add (ticks_done, one)
    prediction = Identity (seen)
    certainty = Div (size, ten)
}"""


def encode(tokens: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, ...]:
    size = tokens.shape[1]
    padded = torch.nn.functional.pad(tokens.float(), (0, WINDOW - size))
    return padded * (torch.arange(WINDOW) < length[:, None]), torch.full((len(tokens),), float(size))


def tick(seen: torch.Tensor, size: torch.Tensor, ticks_done: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return ticks_done + 1, seen, size / 10


def graphs(size: str = "size") -> dict[str, bytes]:
    texts = {"encode": ENCODE.replace("{size}", size), "tick": TICK}
    return {name: onnx.parser.parse_model(text).SerializeToString() for name, text in texts.items()}


def make(kind: str, *, max_admissions: int = 8) -> Backend:
    if kind == "onnx":
        return OnnxRuntimeBackend(PROGRAM, graphs(), 8, max_admissions, intra_op_threads=1)
    backend = TorchBackend(PROGRAM, {"encode": encode, "tick": tick}, 8, max_admissions)
    backend.check_graphs()
    return backend


def prompts(*lengths: int) -> dict[str, Any]:
    """Rows of these lengths; token j of row i is 10 i + j + 1, and what does not count is -1."""
    tokens = 10 * np.arange(len(lengths))[:, None] + np.arange(1, WINDOW + 1)
    counts = np.arange(WINDOW) < np.array(lengths)[:, None]
    return {"tokens": np.where(counts, tokens, -1), "length": np.array(lengths, np.int64)}


@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        pytest.param([1], [2], id="alone"),
        pytest.param([2], [2], id="a bucket is full"),
        pytest.param([3, 4, 3], [4, 4, 4], id="one bucket"),
        pytest.param([8, 1, 4, 5, 2], [8, 2, 4, 8, 2], id="each by its own length, not by its company's"),
    ],
)
def test_a_row_is_cut_by_its_own_length_and_keeps_all_that_counts(kind, lengths, sizes):
    backend = make(kind)
    backend.warm_up()
    backend.admit(range(5)[: len(lengths)], prompts(*[8] * len(lengths)))  # longer ones leave nothing behind
    asked = prompts(*lengths)
    backend.admit(range(5)[: len(lengths)], asked)
    seen = backend.tick(len(lengths))
    np.testing.assert_array_equal(seen.prediction, np.maximum(asked["tokens"], 0))
    np.testing.assert_allclose(seen.certainty * 10, sizes, rtol=1e-6)


def test_warm_up_runs_every_pair_of_rows_and_size():
    met = []

    def watched(tokens: torch.Tensor, length: torch.Tensor) -> tuple[torch.Tensor, ...]:
        met.append(tuple(tokens.shape))
        return encode(tokens, length)

    backend = TorchBackend(PROGRAM, {"encode": watched, "tick": tick}, 8, 4)
    backend.warm_up()
    assert met == [(rows, size) for rows in (2, 4) for size in (2, 4, 8)]


def test_a_program_without_buckets_has_nothing_to_cut():
    plain = replace(PROGRAM, inputs=(replace(PROGRAM.inputs[0], buckets=()), PROGRAM.inputs[1]))
    assert cuts(plain) == ()
    assert all_sizes(()) == [()]
    backend = TorchBackend(plain, {"encode": encode, "tick": tick}, 8, 4)
    backend.admit([0, 1], prompts(1, 3))
    assert backend.tick(2).certainty.tolist() == pytest.approx([0.8, 0.8])


def test_two_inputs_are_cut_each_by_its_own_length():
    tokens, length = PROGRAM.inputs
    both = (tokens, length, replace(tokens, name="other", buckets=(1, 8)), replace(length, length_of="other", name="n"))
    found = cuts(replace(PROGRAM, inputs=both))
    assert all_sizes(found) == [(2, 1), (2, 8), (4, 1), (4, 8), (8, 1), (8, 8)]
    lengths = {"length": np.array([1, 3, 2, 3]), "n": np.array([1, 2, 1, 8])}
    groups = {sizes: places.tolist() for sizes, places in by_sizes(found, lengths)}
    assert groups == {(2, 1): [0, 2], (4, 8): [1, 3]}


def test_a_graph_of_a_fixed_size_cannot_be_cut():
    with pytest.raises(Mismatch, match=r"encode, argument tokens, shape: got .* a free size .* cut to 2, 4, 8"):
        OnnxRuntimeBackend(PROGRAM, graphs("8"), 8, 4)


def test_a_module_that_does_not_pad_what_was_cut_is_refused():
    graphs = {"encode": lambda tokens, length: (tokens.float(), length.float()), "tick": tick}
    backend = TorchBackend(PROGRAM, graphs, 8, 4)
    with pytest.raises(
        Mismatch, match=r"graph encode, results of two rows cut to 2: got .*\[2, 2\].*expected .*\[2, 8\]"
    ):
        backend.check_graphs()
