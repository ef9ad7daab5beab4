"""A bundle's encode graph and T copies of its tick graph as one ONNX graph, as a server without a thought loop runs it.

Both sides of the comparison run the same nodes with the same weights; here nothing returns to Python between ticks.
"""

from collections.abc import Callable, Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from serving.bundle import Bundle
from serving.program import TensorSpec
from serving.request import Array

ANSWER = "answer"
"""The result's name: each row's prediction at its most certain tick, the earliest of equals."""

_ROWS = "rows"


def unroll(bundle: Bundle, ticks: int) -> bytes:
    """The serialised graph: the bundle's inputs to `ANSWER`, [rows, ...] each."""
    program, graphs = bundle.program, bundle.graphs("onnx")
    encode, tick = (onnx.load(str(graphs[name])) for name in ("encode", "tick"))
    inputs = {spec.name for spec in program.inputs}
    nodes = _copy(encode.graph.node, lambda name: name if name in inputs else f"encode/{name}")
    weights = _initialisers(encode, "encode") + _initialisers(tick, "tick")
    shared = {weight.name for weight in tick.graph.initializer}

    start_nodes, start_weights = _start(bundle)
    nodes += start_nodes
    weights += start_weights
    context = {spec.name: f"encode/{spec.name}" for spec in program.context}
    state = {spec.name: f"start/{spec.name}" for spec in program.state}
    for number in range(ticks):
        known = context | state | {name: f"tick/{name}" for name in shared}

        def rename(name: str, number: int = number, known: dict[str, str] = known) -> str:
            return known.get(name, f"tick {number}/{name}")

        nodes += _copy(tick.graph.node, rename)
        state = {name: f"tick {number}/next_{name}" for name in state}
    answer_nodes, axes = _most_certain(program.prediction, program.certainty, ticks)
    nodes += answer_nodes
    graph = helper.make_graph(
        nodes,
        "unrolled",
        [_value(spec.name, spec) for spec in program.inputs],
        [_value(ANSWER, program.prediction)],
        [*weights, axes],
    )
    model = helper.make_model(graph, opset_imports=tick.opset_import, ir_version=tick.ir_version)
    serialised: bytes = model.SerializeToString()
    return serialised


def _copy(nodes: Iterable[onnx.NodeProto], rename: Callable[[str], str]) -> list[onnx.NodeProto]:
    copies = []
    for node in nodes:
        subgraphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        assert all(attribute.type not in subgraphs for attribute in node.attribute), "a CTM has no control flow"
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = rename(node.name)
        # An empty name is an argument left out.
        copy.input[:] = [name and rename(name) for name in node.input]
        copy.output[:] = [name and rename(name) for name in node.output]
        copies.append(copy)
    return copies


def _initialisers(model: onnx.ModelProto, prefix: str) -> list[onnx.TensorProto]:
    copies = []
    for weight in model.graph.initializer:
        copy = onnx.TensorProto()
        copy.CopyFrom(weight)
        copy.name = f"{prefix}/{weight.name}"
        copies.append(copy)
    return copies


def _start(bundle: Bundle) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Every state tensor's start value, once for each row of the first input."""
    program = bundle.program
    nodes = [helper.make_node("Shape", [program.inputs[0].name], ["start/rows"], start=0, end=1)]
    weights = []
    for spec in program.state:
        value, shape = f"start/{spec.name}/value", f"start/{spec.name}/shape"
        weights += [_tensor(value, program.start[spec.name][None]), _tensor(shape, np.array(spec.shape, np.int64))]
        nodes.append(helper.make_node("Concat", ["start/rows", shape], [f"{shape}/whole"], axis=0))
        nodes.append(helper.make_node("Expand", [value, f"{shape}/whole"], [f"start/{spec.name}"]))
    return nodes, weights


def _most_certain(
    prediction: TensorSpec, certainty: TensorSpec, ticks: int
) -> tuple[list[onnx.NodeProto], onnx.TensorProto]:
    """Strictly more certain than every tick before: then its prediction is the answer."""
    axes = _tensor("answer/axes", np.arange(1, 1 + len(prediction.shape), dtype=np.int64))
    best, answer = f"tick 0/{certainty.name}", f"tick 0/{prediction.name}"
    nodes = []
    for number in range(1, ticks):
        now, place = f"tick {number}/{certainty.name}", f"answer/{number}"
        nodes += [
            helper.make_node("Greater", [now, best], [f"{place}/greater"]),
            helper.make_node("Unsqueeze", [f"{place}/greater", axes.name], [f"{place}/better"]),
            helper.make_node("Where", [f"{place}/better", f"tick {number}/{prediction.name}", answer], [f"{place}"]),
            helper.make_node("Max", [now, best], [f"{place}/best"]),
        ]
        best, answer = f"{place}/best", place
    nodes.append(helper.make_node("Identity", [answer], [ANSWER]))
    return nodes, axes


def _value(name: str, spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(spec.dtype), [_ROWS, *spec.shape])


def _tensor(name: str, values: Array) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(values), name)
