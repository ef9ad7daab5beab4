"""From bundle to backend: each kind gives the same thoughts, and what does not fit is refused before it serves."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_bundle import describe, fake_bundle, read_manifest, write_manifest

from serving.backends.base import Backend
from serving.backends.load import load_backend
from serving.backends.onnx_graphs import check_graphs
from serving.bundle import load_bundle
from serving.config import BackendConfig, EngineConfig
from serving.errors import BundleRefused, InstallationLacks
from serving.mismatch import Mismatch

KINDS = ["onnx", "torchscript", "eager"]
ENGINE = EngineConfig(num_slots=3, encode_rows_per_step=2)


@pytest.fixture
def tiny(tiny_store: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, to spoil."""
    return shutil.copytree(tiny_store / "tiny" / "1", tmp_path / "store" / "tiny" / "1")


def load(path: Path, kind: str = "onnx", **settings: Any) -> Backend:
    return load_backend(load_bundle(path), BackendConfig(kind=kind, allow_torchscript=True, **settings), ENGINE)


def think(backend: Backend, ticks: int = 5) -> np.ndarray:
    """Predictions of three rows at each tick."""
    spec = backend.program.inputs[0]
    rows = np.random.default_rng(5).normal(size=(3, *spec.shape)).astype(spec.dtype)
    for first in (0, 2):
        backend.admit(range(3)[first : first + 2], {spec.name: rows[first : first + 2]})
    return np.stack([backend.tick(3).prediction.copy() for _ in range(ticks)])


def test_every_kind_thinks_the_same(tiny):
    onnx, *others = [think(load(tiny, kind)) for kind in KINDS]
    assert np.ptp(onnx) > 1, "the model says something"
    for kind, predictions in zip(KINDS[1:], others, strict=True):
        np.testing.assert_allclose(predictions, onnx, atol=1e-4, err_msg=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_details_come_along_when_asked_for(tiny, kind):
    backend = load(tiny, kind)
    assert think(backend, ticks=1).shape == (1, 3, 10)
    attention = backend.tick(3, details=True).details["attention"]
    np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-5)
    assert backend.tick(3).details == {}


def spoil(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the manifest, which has no hash of its own."""

    def apply(path: Path) -> None:
        document = read_manifest(path)
        change(document)
        write_manifest(path, document)

    return apply


def replace(name: str, data: bytes) -> Callable[[Path], None]:
    """Other bytes, with their hash."""

    def apply(path: Path) -> None:
        (path / name).write_bytes(data)
        rehash = lambda document: document.update(files=[describe(path / file["name"]) for file in document["files"]])  # noqa: E731
        spoil(rehash)(path)

    return apply


def without_artefact(kind: str) -> Callable[[Path], None]:
    return spoil(
        lambda document: document.update(artefacts=[one for one in document["artefacts"] if one["backend"] != kind])
    )


def without_weights(document: dict[str, Any]) -> None:
    document["files"] = [file for file in document["files"] if file["name"] != "weights.safetensors"]


def swap_graphs(document: dict[str, Any]) -> None:
    for artefact in document["artefacts"]:
        graphs = artefact["graphs"]
        graphs["encode"], graphs["tick"] = graphs["tick"], graphs["encode"]


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        pytest.param(
            "onnx",
            without_artefact("onnx"),
            "artefacts: got torchscript, expected one for onnx",
            id="onnx is not there",
        ),
        pytest.param(
            "torchscript",
            without_artefact("torchscript"),
            "artefacts: got onnx, expected one for torchscript",
            id="torchscript is not there",
        ),
        pytest.param(
            "onnx",
            spoil(lambda document: document["context"][0].update(shape=[2, 6, 5])),
            "graph encode, result keys, shape: got ['rows', 2, 6, 4], expected [rows, 2, 6, 5]",
            id="onnx: context of another shape",
        ),
        pytest.param(
            "onnx",
            spoil(lambda document: document["inputs"][0].update(name="image")),
            "graph encode, arguments: got features, expected of image",
            id="onnx: input of another name",
        ),
        pytest.param(
            "onnx",
            spoil(lambda document: document["inputs"][0].update(datatype="FP64")),
            "graph encode, argument features, datatype: got tensor(float), expected tensor(double)",
            id="onnx: input of another datatype",
        ),
        pytest.param(
            "onnx",
            spoil(lambda document: document["outputs"].pop()),
            "graph tick, results: got next_trace",
            id="onnx: an output too many",
        ),
        pytest.param(
            "onnx",
            spoil(
                lambda document: document["outputs"].append(
                    {"name": "sync", "datatype": "FP32", "shape": [2], "role": "DETAIL"}
                )
            ),
            "attention, sync",
            id="onnx: an output is missing",
        ),
        pytest.param(
            "onnx",
            spoil(swap_graphs),
            "graph encode, arguments: got keys, expected of features",
            id="onnx: graphs swapped",
        ),
        pytest.param(
            "onnx", replace("tick.onnx", b"no graph"), "expected graphs that onnx runs", id="onnx: no graph at all"
        ),
        pytest.param(
            "torchscript",
            replace("tick.ts", b"no graph"),
            "expected graphs that torchscript runs",
            id="torchscript: no graph at all",
        ),
        pytest.param(
            "torchscript",
            spoil(lambda document: document["outputs"].pop()),
            "graph tick, results of two rows: got ",
            id="torchscript: an output too many",
        ),
        pytest.param(
            "torchscript",
            spoil(lambda document: document["context"][0].update(shape=[2, 6, 1])),
            "graph encode, results of two rows: got torch.float32 [2, 2, 6, 4]",
            id="torchscript: context of another shape",
        ),
        pytest.param(
            "eager",
            spoil(lambda document: document.update(family="llm")),
            "family: got 'llm', expected ctm",
            id="eager: another family",
        ),
        pytest.param("eager", spoil(without_weights), "got no weights.safetensors", id="eager: no weights"),
        pytest.param(
            "eager",
            spoil(lambda document: document["config"].update(colour=3)),
            "config: got \"unknown CTM settings ['colour']",
            id="eager: unknown setting",
        ),
        pytest.param(
            "eager",
            spoil(lambda document: document["config"].update(width="wide")),
            "manifest.json: config: got",
            id="eager: setting of another type",
        ),
        pytest.param(
            "eager",
            spoil(lambda document: document["config"].update(nlm_hidden=5)),
            "weights.safetensors: got",
            id="eager: weights of another model",
        ),
        pytest.param(
            "eager",
            replace("weights.safetensors", b"no weights"),
            "weights.safetensors: got",
            id="eager: no safetensors",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tiny, kind, change, said):
    change(tiny)
    with pytest.raises(BundleRefused) as refused:
        load(tiny, kind)
    assert str(refused.value).startswith(f"bundle tiny/1 in {tiny.parent.parent}: ")
    assert said in str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [ValueError("array is too big"), MemoryError("Unable to allocate 8.00 TiB")])
def test_a_program_too_large_is_the_bundles_fault(tiny, monkeypatch, kind, error):
    def zeros(*_: Any) -> np.ndarray:
        raise error

    monkeypatch.setattr("serving.backends.base.np.zeros", zeros)
    with pytest.raises(BundleRefused, match=re.escape(f"bundle tiny/1 in {tiny.parent.parent}: got '{error}'")):
        load(tiny, kind)


@pytest.mark.parametrize(
    ("kind", "file"), [("onnx", "tick.onnx"), ("torchscript", "encode.ts"), ("eager", "weights.safetensors")]
)
def test_what_is_loaded_is_what_was_checked(tiny, kind, file):
    """A file that is swapped after the check, and before a runtime reads it, is refused."""
    bundle = load_bundle(tiny)
    data = bytearray((tiny / file).read_bytes())
    data[-1] ^= 1
    (tiny / file).write_bytes(data)
    with pytest.raises(BundleRefused, match=f"{file}: got sha256 {hashlib.sha256(data).hexdigest()}"):
        load_backend(bundle, BackendConfig(kind=kind, allow_torchscript=True), ENGINE)


def test_weights_beside_a_graph_are_not_read(tiny, monkeypatch):
    """They have no hash; and a graph from bytes would look for them in the working directory."""
    graph = onnx.load(tiny / "tick.onnx")
    onnx.save(graph, tiny / "outside.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100)
    assert (tiny / "weights.bin").stat().st_size > 0
    monkeypatch.chdir(tiny)
    replace("tick.onnx", (tiny / "outside.onnx").read_bytes())(tiny)
    with pytest.raises(BundleRefused, match=r"bundle tiny/1 .*External data path .*expected graphs that onnx runs"):
        load(tiny)


def test_torchscript_that_was_tampered_with_is_never_loaded(tiny):
    data = bytearray((tiny / "tick.ts").read_bytes())
    data[-1] ^= 1
    (tiny / "tick.ts").write_bytes(data)
    with pytest.raises(BundleRefused, match=f"tick.ts: got sha256 {hashlib.sha256(data).hexdigest()}"):
        load(tiny, "torchscript")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param({"providers": ("CUDAExecutionProvider",)}, "no CUDAExecutionProvider", id="no such provider here"),
        pytest.param({"providers": ("cpu",)}, "no cpu; this installation has", id="misspelt provider"),
    ],
)
def test_what_the_installation_lacks_is_not_the_bundles_fault(tiny, settings, said):
    if "CUDAExecutionProvider" in settings["providers"]:
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this installation has the provider")
    with pytest.raises(InstallationLacks, match=said):
        load(tiny, **settings)


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnxruntime"), ("torchscript", "torch"), ("eager", "torch")])
def test_a_runtime_that_is_not_installed_is_named(tiny, monkeypatch, kind, package):
    for name in [name for name in sys.modules if name.startswith("serving.backends.") and name.count(".") == 2]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"backend\.kind {kind}: {package} is not installed"):
        load(tiny, kind)


def test_onnx_needs_neither_torch_nor_ctm(tiny):
    program = f"""
import sys
from pathlib import Path
sys.modules["torch"] = sys.modules["ctm"] = None
from serving import cli, server
from serving.backends.load import load_backend
from serving.config import BackendConfig, EngineConfig
from serving.store import load_bundle
print(load_backend(load_bundle(Path({str(tiny)!r})), BackendConfig(), EngineConfig()).tick_buckets)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.startswith("[2, 4, 6"), done.stderr


# The graphs' own description, without a runtime.


@dataclass
class Argument:
    name: str
    type: str
    shape: list[int | str | None]


class Graph:
    """A session that has been asked what it takes and gives."""

    def __init__(self, arguments: dict[str, tuple[str, list[Any]]], results: dict[str, tuple[str, list[Any]]]) -> None:
        self.arguments, self.results = arguments, results

    def get_inputs(self) -> list[Argument]:
        return [Argument(name, f"tensor({kind})", shape) for name, (kind, shape) in self.arguments.items()]

    def get_outputs(self) -> list[Argument]:
        return [Argument(name, f"tensor({kind})", shape) for name, (kind, shape) in self.results.items()]


def graphs(
    *, argument: tuple[str, Any] | None = None, result: tuple[str, Any] | None = None, drop: str = ""
) -> tuple[Graph, Graph]:
    """The fake bundle's graphs, with one thing changed."""
    keys, trace, done = ("float", ["rows", 4]), ("float", ["rows", 2, 2]), ("int64", ["rows"])
    encode = Graph(
        {"image": ("float", ["rows", 2, 3]), "length": ("int64", ["rows"]), "mask": ("bool", ["rows", 2])},
        {"keys": keys},
    )
    tick = Graph(
        {"keys": keys, "trace": trace, "ticks_done": done},
        {
            "next_trace": trace,
            "next_ticks_done": done,
            "prediction": ("float", ["rows", 3]),
            "certainty": ("float", ["rows"]),
            "energy": ("float", ["rows"]),
            "attention": ("float", ["rows", 2, 2]),
            "sync": ("float", ["rows", 5]),
        },
    )
    for changed, where in ((argument, tick.arguments), (result, tick.results)):
        if changed is not None:
            where[changed[0]] = changed[1]
    for where in (encode.arguments, tick.arguments, tick.results):
        where.pop(drop, None)
    return encode, tick


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as described"),
        pytest.param({"drop": "keys"}, id="an argument that the graph has no use for"),
        pytest.param({"result": ("sync", ("float", ["rows", "unknown"]))}, id="a size that the runtime does not know"),
        pytest.param({"result": ("sync", ("float", [None, None]))}, id="sizes without names"),
    ],
)
def test_graphs_that_fit(changes):
    check_graphs(fake_bundle().program, dict(zip(("encode", "tick"), graphs(**changes), strict=True)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        pytest.param(
            {"argument": ("noise", ("float", ["rows"]))},
            "graph tick, arguments: got noise, expected of keys, trace, ticks_done",
            id="unknown argument",
        ),
        pytest.param(
            {"argument": ("trace", ("float", [32, 2, 2]))},
            "argument trace, shape: got [32, 2, 2], expected [rows, 2, 2]",
            id="fixed rows",
        ),
        pytest.param(
            {"argument": ("trace", ("float", ["rows", 2]))},
            "got ['rows', 2], expected [rows, 2, 2]",
            id="a size is missing",
        ),
        pytest.param({"argument": ("trace", ("float", []))}, "got [], expected [rows, 2, 2]", id="no rows"),
        pytest.param(
            {"argument": ("ticks_done", ("int32", ["rows"]))},
            "argument ticks_done, datatype: got tensor(int32), expected tensor(int64)",
            id="datatype",
        ),
        pytest.param(
            {"result": ("prediction", ("float", ["rows", 4]))},
            "result prediction, shape: got ['rows', 4], expected [rows, 3]",
            id="classes",
        ),
        pytest.param(
            {"result": ("next_trace", ("double", ["rows", 2, 2]))},
            "result next_trace, datatype: got tensor(double)",
            id="state",
        ),
        pytest.param(
            {"result": ("extra", ("float", ["rows"]))}, "graph tick, results: got next_trace", id="a result too many"
        ),
        pytest.param({"drop": "certainty"}, "graph tick, results: got next_trace", id="a result is missing"),
    ],
)
def test_graphs_that_do_not_fit(changes, said):
    with pytest.raises(Mismatch) as refused:
        check_graphs(fake_bundle().program, dict(zip(("encode", "tick"), graphs(**changes), strict=True)))
    assert said in str(refused.value)
