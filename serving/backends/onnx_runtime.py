"""The default backend: a bundle's ONNX graphs in ONNX Runtime, on the CPU or wherever its providers run."""

import os
from collections.abc import Mapping, Sequence

import onnxruntime as ort

from serving.backends.base import Backend
from serving.backends.onnx_graphs import check_graphs
from serving.backends.prefix import Sizes
from serving.errors import InstallationLacks
from serving.program import Program
from serving.request import Array


class OnnxRuntimeBackend(Backend):
    """Slots in host memory, bound once for each row count, so that a tick copies nothing and allocates nothing.

    On another provider than the CPU the same bindings hold, and the runtime carries the state to it and back each tick.

    Args:
        graphs: `encode`, `tick` and, where the program has one, `finish`, serialised; with their weights inside, since
            no file is opened.
        providers: execution providers in order of preference, by ONNX Runtime's names.
        intra_op_threads: threads inside one graph; 0 leaves it to the runtime.
        spin: whether idle threads burn cycles while they wait for work. Faster where cores are plenty; on few cores
            they take them from the event loop.

    Raises:
        InstallationLacks: a provider is not there, or does not start.
        Mismatch: the graphs are not the program's.
    """

    def __init__(
        self,
        program: Program,
        graphs: Mapping[str, bytes],
        num_slots: int,
        max_admissions: int,
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        intra_op_threads: int = 0,
        spin: bool = False,
    ) -> None:
        missing = [name for name in providers if name not in ort.get_available_providers()]
        if missing:
            available = ", ".join(ort.get_available_providers())
            raise InstallationLacks(f"ONNX Runtime has no {', '.join(missing)}; this installation has {available}")
        super().__init__(program, num_slots, max_admissions)
        ort.disable_telemetry_events()  # a server tells nobody but its callers, and writes nothing to disk
        options = ort.SessionOptions()
        options.intra_op_num_threads = intra_op_threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        # Weights in files beside a graph have no hash. A graph from bytes would look for them in the working directory;
        # where no folder can be, it finds none and is refused.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        sessions = {
            name: ort.InferenceSession(graph, options, providers=list(providers)) for name, graph in graphs.items()
        }
        for session in sessions.values():
            session._model_bytes = b""  # it would keep them for good, to start anew on other providers
        self._encoder, self._ticker, self._finisher = sessions["encode"], sessions["tick"], sessions.get("finish")
        if (first := providers[0]) not in (running := self._ticker.get_providers()):
            # The runtime falls back without a word when a provider's own libraries are missing.
            raise InstallationLacks(f"ONNX Runtime cannot start {first}; what starts is {', '.join(running)}")
        check_graphs(program, sessions)
        self._encode_bindings: dict[tuple[int, Sizes], ort.IOBinding] = {}
        self._bindings: dict[tuple[int, int, bool], ort.IOBinding] = {}
        self._finish_bindings: dict[int, ort.IOBinding] = {}

    def _encode(self, rows: int, sizes: Sizes) -> None:
        binding = self._encode_bindings.get((rows, sizes))
        if binding is None:
            binding = _bind(self._encoder, rows, self.arguments(rows, sizes), self._encoded)
            self._encode_bindings[rows, sizes] = binding
        self._encoder.run_with_iobinding(binding)

    def _tick(self, rows: int, side: int, details: bool) -> None:
        key = (rows, side, details)
        binding = self._bindings.get(key)
        if binding is None:
            unasked = () if details else {spec.name for spec in self.program.details} - self._kept.keys()
            results = {f"next_{name}": values for name, values in self._state[1 - side].items()}
            results |= {name: values for name, values in self._outputs[1 - side].items() if name not in unasked}
            arguments = self._context | self._state[side]
            binding = self._bindings[key] = _bind(self._ticker, rows, arguments, results)
        self._ticker.run_with_iobinding(binding)

    def _finish(self, rows: int) -> None:
        assert self._finisher is not None, "a program with a finish comes with its graph"
        if (binding := self._finish_bindings.get(rows)) is None:
            binding = _bind(self._finisher, rows, self._finish_arguments, self._finished)
            self._finish_bindings[rows] = binding
        self._finisher.run_with_iobinding(binding)


def _bind(
    session: ort.InferenceSession, rows: int, arguments: Mapping[str, Array], results: Mapping[str, Array]
) -> ort.IOBinding:
    """Tie the first `rows` of each array to the graph's argument or result of its name."""
    binding = session.io_binding()
    # A graph that does not read an argument (a model with no use for its keys) may have dropped it.
    read = {argument.name for argument in session.get_inputs()}
    for name, values in arguments.items():
        if name in read:
            binding.bind_input(name, "cpu", 0, values.dtype, (rows, *values.shape[1:]), values.ctypes.data)
    for name, values in results.items():
        binding.bind_output(name, "cpu", 0, values.dtype, (rows, *values.shape[1:]), values.ctypes.data)
    return binding
