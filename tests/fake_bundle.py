"""Bundles without a model behind them: whatever only reads a manifest and its files needs no more."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict
from safetensors.numpy import save_file

from protos.ctm_bundle_pb2 import Manifest
from serving.bundle import Bundle
from serving.manifest import check, program, stop_defaults

DOCUMENT: dict[str, Any] = {
    "format_version": 1,
    "name": "fake",
    "version": 1,
    "family": "none",
    "task": "nothing",
    "inputs": [
        {"name": "image", "datatype": "FP32", "shape": [2, 3], "minimum": 0, "maximum": 1},
        {"name": "length", "datatype": "INT64", "shape": [], "minimum": -1, "maximum": 9},
        {"name": "mask", "datatype": "BOOL", "shape": [2]},
    ],
    "context": [{"name": "keys", "datatype": "FP32", "shape": [4]}],
    "state": [
        {"name": "trace", "datatype": "FP32", "shape": [2, 2]},
        {"name": "ticks_done", "datatype": "INT64", "shape": []},
    ],
    "outputs": [
        {"name": "prediction", "datatype": "FP32", "shape": [3], "role": "PREDICTION"},
        {"name": "certainty", "datatype": "FP32", "shape": [], "role": "CERTAINTY"},
        {"name": "energy", "datatype": "FP32", "shape": [], "role": "ENERGY"},
        {"name": "attention", "datatype": "FP32", "shape": [2, 2], "role": "DETAIL"},
        {"name": "sync", "datatype": "FP32", "shape": [5], "role": "DETAIL"},
    ],
    "ticks": 20,
    "tick_cap": 40,
    "stop": {"certainty_threshold": 0.75, "min_ticks": 4, "patience": 2, "abstain_below": 0.5},
    "labels": ["zero", "one", "two"],
    "artefacts": [{"backend": "onnx", "graphs": {"encode": "encode.onnx", "tick": "tick.onnx"}}],
}
START = {"trace": np.full((2, 2), 0.5, np.float32), "ticks_done": np.zeros((), np.int64)}


def fake_document(**changes: Any) -> dict[str, Any]:
    """The manifest as JSON has it; a change to None takes a field out."""
    return {key: value for key, value in {**DOCUMENT, **changes}.items() if value is not None}


def fake_bundle(**changes: Any) -> Bundle:
    """A bundle as if it had been loaded."""
    manifest = ParseDict(fake_document(**changes), Manifest())
    check(manifest)
    return Bundle(
        path=Path("nowhere"),
        name=manifest.name,
        version=manifest.version,
        manifest=manifest,
        program=program(manifest),
        labels=tuple(manifest.labels),
        stop=stop_defaults(manifest),
        abstain_below=manifest.stop.abstain_below,
        tick_cap=manifest.tick_cap,
    )


def write_bundle(
    store: Path, name: str = "fake", version: int = 1, *, start: dict[str, np.ndarray] | None = None, **changes: Any
) -> Path:
    """A folder that passes every check but those of a runtime: its graphs are a few bytes."""
    path = store / name / str(version)
    path.mkdir(parents=True)
    for graph in ("encode.onnx", "tick.onnx"):
        (path / graph).write_bytes(f"{graph} of {name}".encode())
    save_file(START if start is None else start, path / "start.safetensors")
    files = changes.pop("files", None) or [describe(path / file.name) for file in sorted(path.iterdir())]
    write_manifest(path, fake_document(name=name, version=version, files=files, **changes))
    return path


def write_manifest(path: Path, document: dict[str, Any]) -> None:
    (path / "manifest.json").write_text(json.dumps(document))


def read_manifest(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return document


def describe(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    return {"name": file.name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
