"""A part of a model through both exports, compared with itself: what the tests of many parts ask for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from ctm.program import Program
from export.onnx_graph import write_onnx
from export.torchscript import quiet, write_torchscript

Run = Callable[..., Sequence[Tensor]]


def check_exports(
    part: nn.Module,
    examples: Callable[[int], tuple[Tensor, ...]],
    arguments: Sequence[str],
    results: Sequence[str],
    folder: Path,
    *,
    tolerance: float = 1e-5,
) -> None:
    """ONNX and TorchScript give the part's own numbers, for other counts of rows than they were made with.

    Args:
        examples: makes arguments of so many rows.
    """
    part.eval()
    write_onnx(part, examples(4), arguments, results, folder / "part.onnx")
    write_torchscript(part, examples(4), folder / "part.ts")
    session = onnxruntime.InferenceSession(str(folder / "part.onnx"))
    with quiet():
        scripted = torch.jit.load(str(folder / "part.ts"))
    for rows in (2, 7):
        given = examples(rows)
        with torch.no_grad():
            expected, again = as_tuple(part(*given)), as_tuple(scripted(*given))
        served = session.run(None, dict(zip(arguments, [x.numpy() for x in given], strict=True)))
        for name, ours, onnx, script in zip(results, expected, served, again, strict=True):
            np.testing.assert_allclose(onnx, ours, atol=tolerance, err_msg=f"{name} of {rows} rows, ONNX")
            np.testing.assert_allclose(script, ours, atol=tolerance, err_msg=f"{name} of {rows} rows, TorchScript")


def exported(how: str, part: nn.Module, example: Sequence[Tensor], program: Program, folder: Path) -> Run:
    """A tick as it is, or through one of the exports: "torch", "torch.jit" or "onnx"."""
    if how == "torch.jit":
        write_torchscript(part, example, folder / "tick.ts")
        with quiet():
            scripted: Run = torch.jit.load(folder / "tick.ts")
        return scripted
    if how == "torch":
        return part
    names = [spec.name for spec in (*program.context, *program.state)]
    results = [f"next_{spec.name}" for spec in program.state] + [spec.name for spec in program.outputs]
    write_onnx(part, example, names, results, folder / "tick.onnx")
    session = onnxruntime.InferenceSession(folder / "tick.onnx", providers=["CPUExecutionProvider"])

    def run(*arguments: Tensor) -> list[Tensor]:
        given = {name: value.numpy() for name, value in zip(names, arguments, strict=True)}
        return [torch.from_numpy(np.asarray(value)) for value in session.run(None, given)]

    return run


def as_tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)
