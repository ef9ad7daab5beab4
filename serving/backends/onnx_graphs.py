"""Whether a bundle's ONNX graphs are the program that its manifest describes: names, datatypes, shapes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from serving.mismatch import Mismatch, listing
from serving.program import Program, TensorSpec


class Argument(Protocol):
    """An argument or a result, as ONNX Runtime describes it."""

    name: str
    type: str
    shape: Sequence[int | str | None]


class Session(Protocol):
    """As much of an `onnxruntime.InferenceSession` as matters here."""

    def get_inputs(self) -> Sequence[Argument]: ...

    def get_outputs(self) -> Sequence[Argument]: ...


def check_graphs(program: Program, sessions: Mapping[str, Session]) -> None:
    """Compare every graph with the program.

    Raises:
        Mismatch: they are not the same.
    """
    next_state = [TensorSpec(f"next_{spec.name}", spec.dtype, spec.shape) for spec in program.state]
    described: dict[str, tuple[Sequence[TensorSpec], Sequence[TensorSpec]]] = {
        "encode": (program.inputs, program.context),
        "tick": ((*program.context, *program.state), (*next_state, *program.outputs)),
    }
    if program.finish is not None:
        described["finish"] = program.finish.arguments, program.finish.results
    for name, (arguments, results) in described.items():
        _check_arguments(name, sessions[name].get_inputs(), arguments)
        _check_results(name, sessions[name].get_outputs(), results)


def _check_arguments(graph: str, found: Iterable[Argument], specs: Sequence[TensorSpec]) -> None:
    """A graph may lack an argument that it has no use for, and no other."""
    expected = {spec.name: spec for spec in specs}
    for argument in found:
        if argument.name not in expected:
            raise Mismatch(f"graph {graph}, arguments", argument.name, f"of {listing(expected)}")
        spec = expected[argument.name]
        _check(f"graph {graph}, argument {argument.name}", argument, spec)
        if len(spec.buckets) > 1 and isinstance(argument.shape[1], int):
            what = f"graph {graph}, argument {argument.name}, shape"
            raise Mismatch(
                what, list(argument.shape), f"a free size after the rows: it is cut to {listing(spec.buckets)}"
            )


def _check_results(graph: str, found: Iterable[Argument], specs: Sequence[TensorSpec]) -> None:
    results = {result.name: result for result in found}
    if set(results) != {spec.name for spec in specs}:
        raise Mismatch(f"graph {graph}, results", listing(results), listing(spec.name for spec in specs))
    for spec in specs:
        _check(f"graph {graph}, result {spec.name}", results[spec.name], spec)


def _check(what: str, found: Argument, spec: TensorSpec) -> None:
    name = {"float32": "float", "float64": "double"}.get(spec.dtype.name, spec.dtype.name)
    if found.type != f"tensor({name})":
        raise Mismatch(f"{what}, datatype", found.type, f"tensor({name})")
    rows, *sizes = found.shape or [1]
    # The runtime does not always know a result's sizes; those it names must be right, and the first must be free.
    known = all(isinstance(size, str | None) or size == wanted for size, wanted in zip(sizes, spec.shape, strict=False))
    if isinstance(rows, int) or len(sizes) != len(spec.shape) or not known:
        raise Mismatch(f"{what}, shape", list(found.shape), f"[rows, {', '.join(map(str, spec.shape))}]")
