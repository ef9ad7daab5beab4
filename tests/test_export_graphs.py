"""Exported graphs: what they promise to a server, and that a row's numbers do not depend on its company, to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from tiny_bundle import tiny_inputs, tiny_model

from ctm.program import Encode, Tick, pack_state, specify
from export.artefact import TorchScriptArtefact
from export.onnx_graph import OPSET, write_onnx
from export.torchscript import write_torchscript

MODELS: dict[str, dict[str, Any]] = {
    # Ten and seven numbers in a row: no multiple of what fits into a vector register.
    "digit images": {
        "backbone": "digit",
        "in_channels": 1,
        "input_shape": (1, 12, 12),
        "input_mean": (0.3,),
        "input_std": (0.4,),
        "width": 40,
        "memory": 7,
        "attention_width": 24,
    },
    "residual images, U-Net, normalised neurons, structured prediction, energy": {
        "backbone": "resnet18-1",
        "positional": "custom-rotational",
        "in_channels": 3,
        "input_shape": (3, 10, 10),
        "width": 37,
        "synapse_depth": 3,
        "nlm_layernorm": True,
        "energy_hidden": 5,
        "out_dims": 21,
        "prediction_shape": (3, 7),
    },
    "hyper synapses and neurons, gated": {
        "width": 37,
        "synapse_depth": 3,
        "nlm_hidden": 5,
        "hyper_layers": "all",
        "hyper_rank": 3,
        "hyper_nlm_rank": 2,
        "hyper_gate": True,
    },
    "hyper bottleneck and neurons of rank 1, normalised neurons": {
        "synapse_depth": 4,
        "hyper_layers": "bottleneck",
        "hyper_rank": 1,
        "hyper_nlm_rank": 1,
        "nlm_layernorm": True,
    },
    # Longer sums than ONNX Runtime's matrix products take in one go.
    "many tokens, pairs and classes": {
        "in_channels": 150,
        "input_shape": (150, 200),
        "attention_width": 144,
        "heads": 1,
        "width": 150,
        "neuron_selection": "first-last",
        "out_neurons": 24,
        "action_neurons": 17,
        "out_dims": 301,
    },
}
ROWS = 64
ROW_COUNTS = (2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64)


@pytest.fixture(scope="module", params=MODELS)
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with encode.onnx and tick.onnx."""
    folder = tmp_path_factory.mktemp("graphs")
    model = tiny_model(**MODELS[request.param])
    program = specify(model, "image")
    encode, tick = Encode(model).eval(), Tick(model, 16, convolve=True).eval()
    inputs = tiny_inputs(model, rows=3)
    with torch.no_grad():
        state = pack_state(model.start(3), torch.zeros(3, dtype=torch.int64))
        arguments = [tensor.contiguous() for tensor in (*encode(inputs), *state)]
    names = [spec.name for spec in (*program.context, *program.state)]
    results = [f"next_{spec.name}" for spec in program.state] + [spec.name for spec in program.outputs]
    write_onnx(encode, [inputs], ["image"], [spec.name for spec in program.context], folder / "encode.onnx")
    write_onnx(tick, arguments, names, results, folder / "tick.onnx")
    return folder


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("function", ["encode", "tick"])
def test_the_same_row_gives_the_same_bits_in_any_row_count_and_at_any_place(
    graphs: Path, function: str, threads: int
) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(graphs / f"{function}.onnx", options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    everybody = {argument.name: _values(argument, generator) for argument in session.get_inputs()}
    expected = session.run(None, everybody)
    names = [result.name for result in session.get_outputs()]
    for count in ROW_COUNTS:
        places = generator.permutation(ROWS)[:count]
        results = session.run(None, {name: values[places] for name, values in everybody.items()})
        for name, found, whole in zip(names, results, expected, strict=True):
            assert found.tobytes() == whole[places].tobytes(), f"{name} of {count} rows, seed 0"


def test_graphs_are_plain_onnx_with_free_rows_and_no_arithmetic_on_shapes(graphs: Path) -> None:
    for path in (graphs / "encode.onnx", graphs / "tick.onnx"):
        model = onnx.load(path, load_external_data=False)
        graph = model.graph
        assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
        for value in (*graph.input, *graph.output):
            first, *rest = value.type.tensor_type.shape.dim
            assert first.dim_param == "rows", value.name
            assert all(size.dim_value for size in rest), value.name
        assert not {"Shape", "Size", "Expand", "ConstantOfShape", "Range"} & {node.op_type for node in graph.node}
        assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer)


def test_graphs_hold_no_notes_on_the_machine_that_made_them(graphs: Path, tmp_path: Path) -> None:
    model = tiny_model()
    write_torchscript(Encode(model).eval(), [tiny_inputs(model, 3)], tmp_path / "encode.ts")
    for path in (graphs / "encode.onnx", graphs / "tick.onnx", tmp_path / "encode.ts"):
        content = path.read_bytes()
        assert b"site-packages" not in content
        assert str(Path(__file__).parent.parent).encode() not in content


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_torchscript_takes_other_row_counts_than_it_was_traced_with(rows: int, tmp_path: Path) -> None:
    model = tiny_model(out_dims=12, prediction_shape=(4, 3))
    encode, tick = Encode(model).eval(), Tick(model, 16).eval()
    with torch.no_grad():
        state = pack_state(model.start(3), torch.zeros(3, dtype=torch.int64))
        write_torchscript(encode, [tiny_inputs(model, 3)], tmp_path / "encode.ts")
        arguments = [tensor.contiguous() for tensor in (*encode(tiny_inputs(model, 3)), *state)]
        write_torchscript(tick, arguments, tmp_path / "tick.ts")
        artefact = TorchScriptArtefact(tmp_path / "encode.ts", tmp_path / "tick.ts")

        inputs = tiny_inputs(model, rows)
        context = encode(inputs)
        found = artefact.encode([inputs.numpy()])
        for value, expected in zip(found, context, strict=True):
            np.testing.assert_allclose(value, expected.numpy(), atol=1e-5)
        state = pack_state(model.start(rows), torch.arange(rows))
        results = artefact.tick([*found, *(tensor.numpy() for tensor in state)])
        for value, expected in zip(results, tick(*context, *state), strict=True):
            np.testing.assert_allclose(value, expected.numpy(), atol=1e-4)


def _values(argument: ort.NodeArg, generator: np.random.Generator) -> np.ndarray:
    shape = (ROWS, *argument.shape[1:])
    if argument.type == "tensor(int64)":
        return generator.integers(0, 20, shape)
    return generator.standard_normal(shape).astype(np.float32)
