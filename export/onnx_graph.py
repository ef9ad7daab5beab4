"""A program's functions as ONNX graphs: dynamic rows, named arguments and results, everything in one file."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

OPSET = 20
"""The newest that ONNX Runtime 1.20, the oldest we serve with, knows in full."""

ROWS = "rows"


def write_onnx(
    function: nn.Module,
    example: Sequence[Tensor],
    arguments: Sequence[str],
    results: Sequence[str],
    path: Path,
    *,
    cut: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Export, optimise, check and write one function.

    Args:
        example: one tensor for each argument, with more than one row: one is a size that the exporter may bake in.
        cut: sizes that the first dimension after the rows may have, of arguments that come shortened.
    """
    rows = torch.export.Dim(ROWS, min=1, max=1 << 20)
    shapes: list[dict[int, torch.export.Dim]] = [{0: rows} for _ in example]
    for name, sizes in (cut or {}).items():
        shapes[arguments.index(name)][1] = torch.export.Dim(f"{name}_given", min=2, max=max(sizes))
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            function,
            tuple(example),
            dynamo=True,
            optimize=True,
            opset_version=OPSET,
            external_data=False,
            input_names=list(arguments),
            output_names=list(results),
            dynamic_shapes=tuple(shapes),
            verbose=False,
        )
    assert program is not None, "the exporter returns a program unless it is given a file"
    model = _strip(program.model_proto)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def _strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without the exporter's notes, which hold the source paths of the machine that it ran on."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "program", ""
    del graph.metadata_props[:], graph.value_info[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    for initializer in graph.initializer:
        initializer.doc_string = ""
        del initializer.metadata_props[:]
    assert not model.functions, "the exporter inlines its functions"
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself: deprecated uses of torch inside it, and packages we do not need."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registry.setLevel(level)
