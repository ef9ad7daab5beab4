"""From a checked bundle to a backend that is ready to tick."""

from collections.abc import Callable

from serving.backends.base import Backend
from serving.bundle import Bundle
from serving.errors import BundleRefused, InstallationLacks
from serving.mismatch import Mismatch, listing, quote
from serving.settings import BackendConfig, EngineConfig


def load_backend(bundle: Bundle, config: BackendConfig, engine: EngineConfig) -> Backend:
    """The bundle's program in the runtime that is asked for, warmed up.

    Raises:
        BundleRefused: the bundle lacks what this runtime needs, or its graphs are not what its manifest says.
        InstallationLacks: what the configuration asks for is not there, so that no bundle can be served.
    """
    loaders: dict[str, Callable[[Bundle, BackendConfig, EngineConfig], Backend]] = {
        "onnx": _load_onnx,
        "torchscript": _load_torchscript,
        "eager": _load_eager,
    }
    where = f"bundle {bundle} in {bundle.path.parent.parent}"
    try:
        return _warm(loaders[config.kind](bundle, config, engine))
    except ImportError as error:
        missing = f"backend.kind {config.kind}: {error.name} is not installed (see the extras)"
        raise InstallationLacks(missing) from error
    except InstallationLacks:
        raise
    except (Mismatch, OSError) as error:
        reason = error.refusal if isinstance(error, Mismatch) else "unreadable"
        raise BundleRefused(f"{where}: {error}", reason=reason) from error
    except MemoryError as error:
        expected = f"a program of which {engine.num_slots} slots fit in memory"
        raise BundleRefused(
            f"{where}: got {quote(str(error), 300)}, expected {expected}", reason="not_runnable"
        ) from error
    except Exception as error:  # whatever a runtime throws at a graph that it cannot run
        raise BundleRefused(
            f"{where}: got {quote(str(error), 300)}, expected graphs that {config.kind} runs", reason="not_runnable"
        ) from error


def _warm(backend: Backend) -> Backend:
    backend.warm_up()
    return backend


def _load_onnx(bundle: Bundle, config: BackendConfig, engine: EngineConfig) -> Backend:
    from serving.backends.onnx_runtime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(
        bundle.program,
        _graphs(bundle, "onnx"),
        engine.num_slots,
        engine.encode_rows_per_step,
        providers=config.providers,
        intra_op_threads=config.intra_op_threads,
        spin=config.spin,
    )


def _load_torchscript(bundle: Bundle, config: BackendConfig, engine: EngineConfig) -> Backend:
    from serving.backends.torch_programs import TorchBackend, load_torchscript

    assert config.allow_torchscript, "the configuration refuses TorchScript unless it is allowed"
    graphs = load_torchscript(_graphs(bundle, "torchscript"))
    backend = TorchBackend(bundle.program, graphs, engine.num_slots, engine.encode_rows_per_step)
    backend.check_graphs()
    return backend


def _load_eager(bundle: Bundle, _: BackendConfig, engine: EngineConfig) -> Backend:
    from serving.backends.eager import load_eager
    from serving.backends.torch_programs import TorchBackend

    backend = TorchBackend(bundle.program, load_eager(bundle), engine.num_slots, engine.encode_rows_per_step)
    backend.check_graphs()
    return backend


def _graphs(bundle: Bundle, kind: str) -> dict[str, bytes]:
    graphs = bundle.graphs(kind)
    if not graphs:
        there = [artefact.backend for artefact in bundle.manifest.artefacts]
        raise Mismatch("manifest.json: artefacts", listing(there), f"one for {kind}")
    return {function: bundle.read(path.name) for function, path in graphs.items()}
