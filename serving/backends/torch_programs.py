"""Backends that run a program with torch: a bundle's TorchScript graphs, or eager modules built from its weights.

The only files of the server that import torch; they are imported when such a backend is asked for.
"""

import io
import warnings
from collections.abc import Callable, Mapping

import torch

from serving.backends.base import Backend
from serving.backends.prefix import Sizes, all_sizes
from serving.mismatch import Mismatch, listing
from serving.program import Program
from serving.request import Array

Graph = Callable[..., tuple[torch.Tensor, ...] | torch.Tensor]


class TorchBackend(Backend):
    """Slots in host memory, shared with torch: arguments are views, results are copied into the slots."""

    def __init__(self, program: Program, graphs: Mapping[str, Graph], num_slots: int, max_admissions: int) -> None:
        super().__init__(program, num_slots, max_admissions)
        self._graphs = graphs

    def _encode(self, rows: int, sizes: Sizes) -> None:
        self._run(self._graphs["encode"], rows, self.arguments(rows, sizes), self._encoded)

    def _tick(self, rows: int, side: int, details: bool) -> None:
        del details  # they are computed either way
        arguments, results = self._context | self._state[side], self._state[1 - side] | self._outputs[1 - side]
        self._run(self._graphs["tick"], rows, arguments, results)

    def _finish(self, rows: int) -> None:
        self._run(self._graphs["finish"], rows, self._finish_arguments, self._finished)

    def check_graphs(self) -> None:
        """Run every graph on two rows: copying into the slots would quietly stretch a result of another shape.

        Raises:
            Mismatch: a result is not what the program says.
        """
        for sizes in all_sizes(self._cuts):
            where = f" cut to {listing(sizes)}" if sizes else ""
            self._check("encode", where, self.arguments(2, sizes), self._encoded)
        self._check("tick", "", self._context | self._state[0], self._state[1] | self._outputs[1])
        if self.program.finish is not None:
            self._check("finish", "", self._finish_arguments, self._finished)

    def _check(self, name: str, where: str, arguments: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        with torch.inference_mode():
            computed = self._graphs[name](*(torch.from_numpy(values[:2]) for values in arguments.values()))
        tensors = (computed,) if isinstance(computed, torch.Tensor) else computed
        got = [f"{tensor.dtype} {list(tensor.shape)}" for tensor in tensors]
        found = [torch.from_numpy(values[:2]) for values in results.values()]
        expected = [f"{tensor.dtype} {list(tensor.shape)}" for tensor in found]
        if got != expected:
            raise Mismatch(f"graph {name}, results of two rows{where}", ", ".join(got), ", ".join(expected))

    @staticmethod
    def _run(graph: Graph, rows: int, arguments: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        with torch.inference_mode():
            computed = graph(*(torch.from_numpy(values[:rows]) for values in arguments.values()))
            tensors = (computed,) if isinstance(computed, torch.Tensor) else computed
            for values, tensor in zip(results.values(), tensors, strict=True):
                torch.from_numpy(values[:rows]).copy_(tensor)


def load_torchscript(graphs: Mapping[str, bytes]) -> dict[str, Graph]:
    """The graphs by name. A TorchScript file is a program: load only bytes whose hash was checked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13 deprecates TorchScript, which still runs
        return {
            name: torch.jit.load(io.BytesIO(graph), map_location="cpu").eval()  # type: ignore[no-untyped-call]  # torch's
            for name, graph in graphs.items()
        }
