"""A bundle's bare graphs in ONNX Runtime, bound to one batch: no engine, no scheduler, nothing copied."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from serving.bundle import Bundle
from serving.program import TensorSpec
from serving.request import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """How ONNX Runtime runs a graph."""

    threads: int
    spin: bool = False
    """Idle threads burn cycles while they wait for work."""
    prepack: bool = True
    """Weights are copied into the kernels' own layout; once a node, so that an unrolled graph copies them T times."""

    def __str__(self) -> str:
        notes = [f"{self.threads} thread{'s' if self.threads > 1 else ''}"]
        notes += ["spinning"] if self.spin else []
        notes += [] if self.prepack else ["weights not packed"]
        return ", ".join(notes)


def runtimes() -> list[Runtime]:
    """The settings worth trying on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    several = [Runtime(threads=cores), Runtime(threads=cores, spin=True)] if cores > 1 else []
    return [Runtime(threads=1), *several]


def lockstep_runtimes() -> list[Runtime]:
    """The same for an unrolled graph, where a packed copy of the weights for each tick may outgrow the caches."""
    return [replace(runtime, prepack=prepack) for runtime in runtimes() for prepack in (True, False)]


def open_session(graph: Path | bytes, runtime: Runtime) -> ort.InferenceSession:
    """A session on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = runtime.threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if runtime.spin else "0")
    options.add_session_config_entry("session.disable_prepacking", "0" if runtime.prepack else "1")
    source = graph if isinstance(graph, bytes) else str(graph)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class BoundGraphs:
    """Both graphs of a bundle, bound to batches of one size. What `encode` writes is what `tick` reads."""

    def __init__(self, bundle: Bundle, rows: int, runtime: Runtime) -> None:
        self.rows, self.runtime = rows, runtime
        self._program = program = bundle.program
        graphs = bundle.graphs("onnx")
        self._encoder, self._ticker = (open_session(graphs[name], runtime) for name in ("encode", "tick"))

        def zeros(specs: Iterable[TensorSpec]) -> dict[str, Array]:
            return {spec.name: np.zeros((rows, *spec.shape), spec.dtype) for spec in specs}

        self.inputs = zeros(program.inputs)
        self._context = zeros(program.context)  # bindings hold addresses, not arrays: these must live as long
        self._state = [zeros(program.state) for _ in range(2)]
        details = {spec.name for spec in program.details}
        wanted = [spec for spec in program.outputs if spec.name not in details]
        self._outputs = [zeros(wanted) for _ in range(2)]
        self._encode = bind(self._encoder, self.inputs, self._context)
        self._tick = [
            bind(
                self._ticker,
                self._context | self._state[side],
                {f"next_{name}": values for name, values in self._state[1 - side].items()} | self._outputs[1 - side],
            )
            for side in (0, 1)
        ]
        self._side = 0
        self.restart()

    def encode(self) -> None:
        """Fill the context from `inputs`."""
        self._encoder.run_with_iobinding(self._encode)

    def restart(self) -> None:
        """Every row at its start state."""
        for name, values in self._state[self._side].items():
            values[:] = self._program.start[name]

    def tick(self) -> tuple[Array, Array]:
        """One tick of every row: predictions [rows, ...] and certainties [rows], good until the next but one."""
        self._ticker.run_with_iobinding(self._tick[self._side])
        self._side = 1 - self._side
        outputs = self._outputs[self._side]
        return outputs[self._program.prediction.name], outputs[self._program.certainty.name]


def bind(session: ort.InferenceSession, arguments: Mapping[str, Array], results: Mapping[str, Array]) -> ort.IOBinding:
    """Tie each array to the graph's argument or result of its name."""
    binding = session.io_binding()
    read = {argument.name for argument in session.get_inputs()}
    for name, values in arguments.items():
        if name in read:
            binding.bind_input(name, "cpu", 0, values.dtype, values.shape, values.ctypes.data)
    for name, values in results.items():
        binding.bind_output(name, "cpu", 0, values.dtype, values.shape, values.ctypes.data)
    return binding
