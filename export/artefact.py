"""Running an exported form of a program from its files, as a server would: arrays in, arrays out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from export.torchscript import quiet

Array = NDArray[Any]


class Artefact(Protocol):
    """All functions of one exported form."""

    backend: str
    """As the manifest calls it."""

    def encode(self, arguments: Sequence[Array]) -> list[Array]: ...

    def tick(self, arguments: Sequence[Array]) -> list[Array]: ...

    def finish(self, arguments: Sequence[Array]) -> list[Array]:
        """Only of programs that have it."""
        ...


class OnnxArtefact:
    """ONNX Runtime on the CPU."""

    backend = "onnx"

    def __init__(self, encode: Path, tick: Path, finish: Path | None = None) -> None:
        self._encode, self._tick = (_session(path) for path in (encode, tick))
        self._finish = None if finish is None else _session(finish)

    def encode(self, arguments: Sequence[Array]) -> list[Array]:
        return _run(self._encode, arguments)

    def tick(self, arguments: Sequence[Array]) -> list[Array]:
        return _run(self._tick, arguments)

    def finish(self, arguments: Sequence[Array]) -> list[Array]:
        assert self._finish is not None, "the program has a finish"
        return _run(self._finish, arguments)


class TorchScriptArtefact:
    """TorchScript on the CPU."""

    backend = "torchscript"

    def __init__(self, encode: Path, tick: Path, finish: Path | None = None) -> None:
        self._encode, self._tick = (_graph(path) for path in (encode, tick))
        self._finish = None if finish is None else _graph(finish)

    def encode(self, arguments: Sequence[Array]) -> list[Array]:
        return self._run(self._encode, arguments)

    def tick(self, arguments: Sequence[Array]) -> list[Array]:
        return self._run(self._tick, arguments)

    def finish(self, arguments: Sequence[Array]) -> list[Array]:
        assert self._finish is not None, "the program has a finish"
        return self._run(self._finish, arguments)

    @torch.inference_mode()
    def _run(self, graph: torch.jit.ScriptModule, arguments: Sequence[Array]) -> list[Array]:
        results = graph(*(torch.from_numpy(np.ascontiguousarray(value)) for value in arguments))
        return [result.numpy() for result in results]


def _graph(path: Path) -> torch.jit.ScriptModule:
    with quiet():
        graph: torch.jit.ScriptModule = torch.jit.load(str(path))  # type: ignore[no-untyped-call]  # torch's
    return graph


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, arguments: Sequence[Array]) -> list[Array]:
    feeds = {argument.name: value for argument, value in zip(session.get_inputs(), arguments, strict=True)}
    results: list[Array] = session.run(None, feeds)
    return results
