"""From a source to a published bundle: write the graphs, compare them with eager, describe, publish."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from export.agreement import Agreement, measure_agreement
from export.artefact import OnnxArtefact, TorchScriptArtefact
from export.bundle import draft, publish
from export.card import write_card
from export.commit import describe_commit
from export.manifest import (
    describe_artefact,
    describe_files,
    describe_quality,
    describe_source,
    write_manifest,
)
from export.onnx_graph import OPSET, write_onnx
from export.plots import write_plots
from export.quality import Quality
from export.source import Source
from export.torchscript import write_torchscript
from protos.ctm_bundle_pb2 import Manifest

START, WEIGHTS = "start.safetensors", "weights.safetensors"
ONNX_GRAPHS = {"encode": "encode.onnx", "tick": "tick.onnx"}
TORCHSCRIPT_GRAPHS = {"encode": "encode.ts", "tick": "tick.ts"}
EXAMPLE_ROWS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """How a bundle is published, and the defaults that it ships with."""

    store: Path
    name: str
    tick_cap: int
    certainty_threshold: float | None = None
    abstain_below: float | None = None
    patience: int | None = None
    energy_threshold: float | None = None
    energy_delta: float | None = None
    description: str = ""
    command: str = ""
    """The export's own."""
    convolve: bool = True
    """Whether the ONNX graph computes neuron-level models as convolutions, which suits CPUs."""
    only_onnx: bool = False
    """Whether TorchScript and the weights are left out."""


def build_bundle(
    source: Source, publication: Publication, inputs: Sequence[Tensor], quality: Quality | None = None
) -> Path:
    """Export and publish; returns the bundle's folder.

    Args:
        inputs: rows to compare artefacts and eager on, a tensor for each input of the program.

    Raises:
        DisagreementError: an artefact does not compute what eager does; nothing is published.
    """
    manifest = describe_source(source, publication.tick_cap)
    _set_defaults(manifest, publication)
    with draft(publication.store, publication.name) as folder:
        _write_program(source, publication, folder)
        for name in ("onnx",) if publication.only_onnx else ("onnx", "torchscript"):
            agreement = _agreement(source, name, folder, inputs, publication)
            graphs, opset = (ONNX_GRAPHS, OPSET) if name == "onnx" else (TORCHSCRIPT_GRAPHS, 0)
            manifest.artefacts.append(describe_artefact(name, graphs, opset, agreement))
        if quality is not None:
            manifest.quality.CopyFrom(describe_quality(quality))
            write_plots(quality, folder)
        manifest.files.extend(describe_files(folder))

        def finish(version: int) -> None:
            manifest.version = version
            write_manifest(manifest, folder)
            write_card(manifest, quality, folder)

        return publish(folder, publication.store, publication.name, finish)


@torch.no_grad()
def _write_program(source: Source, publication: Publication, folder: Path) -> None:
    """Both functions in both forms, the start values and the weights."""
    servable, program = source.servable, source.program
    encode, tick = servable.encode(), servable.tick(publication.tick_cap)
    onnx_tick = servable.tick(publication.tick_cap, convolve=publication.convolve)
    inputs, start = servable.examples(EXAMPLE_ROWS), servable.start()
    state = [start[spec.name].expand(EXAMPLE_ROWS, *spec.shape) for spec in program.state]
    arguments = [tensor.contiguous() for tensor in (*encode(*inputs), *state)]

    context_names, state_names = [spec.name for spec in program.context], [spec.name for spec in program.state]
    results = [f"next_{name}" for name in state_names] + [spec.name for spec in program.outputs]
    input_names = [spec.name for spec in program.inputs]
    cut = {spec.name: spec.buckets for spec in program.inputs if spec.buckets}
    write_onnx(encode, inputs, input_names, context_names, folder / ONNX_GRAPHS["encode"], cut=cut)
    write_onnx(onnx_tick, arguments, context_names + state_names, results, folder / ONNX_GRAPHS["tick"])
    save_file(start, folder / START)
    for name, text in source.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    if not publication.only_onnx:
        write_torchscript(encode, inputs, folder / TORCHSCRIPT_GRAPHS["encode"])
        write_torchscript(tick, arguments, folder / TORCHSCRIPT_GRAPHS["tick"])
        weights = {name: tensor.contiguous() for name, tensor in source.model.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
    for path in folder.glob("*.safetensors"):
        # safetensors writes for its owner alone; a server often runs as somebody else.
        path.chmod(0o644)


def _agreement(
    source: Source, backend: str, folder: Path, inputs: Sequence[Tensor], publication: Publication
) -> Agreement:
    graphs, form = (ONNX_GRAPHS, OnnxArtefact) if backend == "onnx" else (TORCHSCRIPT_GRAPHS, TorchScriptArtefact)
    artefact = form(folder / graphs["encode"], folder / graphs["tick"])
    return measure_agreement(
        source.servable,
        artefact,
        inputs,
        publication.certainty_threshold,
        energy_threshold=publication.energy_threshold,
        energy_delta=publication.energy_delta,
    )


def _set_defaults(manifest: Manifest, publication: Publication) -> None:
    manifest.name, manifest.description = publication.name, publication.description
    for field in ("certainty_threshold", "abstain_below", "patience", "energy_threshold", "energy_delta"):
        value = getattr(publication, field)
        if value is not None:
            setattr(manifest.stop, field, value)
    provenance = manifest.provenance
    provenance.export_command = publication.command
    provenance.commit = describe_commit(Path(__file__).parent)
    provenance.created = datetime.now(UTC).isoformat(timespec="seconds")
    for package in ("ctm-serving", "torch", "onnx", "onnxscript", "onnxruntime"):
        if installed := _version(package):
            provenance.versions[f"export: {package}"] = installed
    provenance.versions["export: python"] = platform.python_version()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
