"""From a source to a published bundle: write the graphs, compare them with eager, describe, publish."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ctm.program import TensorSpec
from ctm.servable import Servable, ServableDiffusion, examples_of
from export.agreement import measure_agreement
from export.artefact import OnnxArtefact, TorchScriptArtefact
from export.bundle import draft, publish
from export.card import write_card
from export.chain_agreement import measure_chain
from export.commit import describe_commit
from export.manifest import (
    AnyQuality,
    describe_artefact,
    describe_files,
    describe_quality,
    describe_source,
    write_manifest,
)
from export.onnx_graph import OPSET, write_onnx
from export.plots import write_plots
from export.plots_diffusion import write_noise_plots
from export.quality_diffusion import NoiseQuality
from export.source import Source
from export.torchscript import write_torchscript
from protos.ctm_bundle_pb2 import Artefact as ArtefactMessage
from protos.ctm_bundle_pb2 import Manifest

START, WEIGHTS = "start.safetensors", "weights.safetensors"
ONNX, TORCHSCRIPT = "onnx", "torchscript"
ENDINGS = {ONNX: "onnx", TORCHSCRIPT: "ts"}
"""Of a graph's file, by backend."""
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
    steps: int = 20
    """Reverse steps of a sample, of diffusion; never more than there are levels."""
    eta: float = 0.0
    """How far a reverse step is random, of diffusion."""


def build_bundle(
    source: Source, publication: Publication, inputs: Sequence[Tensor], quality: AnyQuality | None = None
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
        for backend, files in _write_program(source, publication, folder).items():
            manifest.artefacts.append(_describe(source, backend, files, folder, inputs, publication))
        if quality is not None:
            manifest.quality.CopyFrom(describe_quality(quality))
            if isinstance(quality, NoiseQuality):
                write_noise_plots(quality, folder)
            else:
                write_plots(quality, folder)
        manifest.files.extend(describe_files(folder))

        def finish(version: int) -> None:
            manifest.version = version
            write_manifest(manifest, folder)
            write_card(manifest, quality, folder)

        return publish(folder, publication.store, publication.name, finish)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Function:
    """One of a program's functions, ready to be written."""

    module: nn.Module
    example: Sequence[Tensor]
    arguments: Sequence[str]
    results: Sequence[str]
    cut: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Sizes that arguments may be cut to."""


@torch.no_grad()
def _functions(servable: Servable, tick_cap: int, *, convolve: bool) -> dict[str, _Function]:
    """By name: encode, tick, and finish where there is one."""
    program, start, inputs = servable.program, servable.start(), servable.examples(EXAMPLE_ROWS)
    encode, tick, finish = servable.encode(), servable.tick(tick_cap, convolve=convolve), servable.finish()
    context = encode(*inputs)
    state = [start[spec.name].expand(EXAMPLE_ROWS, *spec.shape) for spec in program.state]
    context_names, state_names = _names(program.context), _names(program.state)
    functions = {
        "encode": _Function(
            module=encode,
            example=inputs,
            arguments=_names(program.inputs),
            results=context_names,
            cut={spec.name: spec.buckets for spec in program.inputs if spec.buckets},
        ),
        "tick": _Function(
            module=tick,
            example=[tensor.contiguous() for tensor in (*context, *state)],
            arguments=context_names + state_names,
            results=[f"next_{name}" for name in state_names] + _names(program.outputs),
        ),
    }
    if finish is not None:
        functions["finish"] = _Function(
            module=finish,
            example=examples_of(program.finish_inputs, EXAMPLE_ROWS),
            arguments=_names(program.finish_inputs),
            results=_names(program.finish_outputs),
        )
    return functions


def _write_program(source: Source, publication: Publication, folder: Path) -> dict[str, dict[str, str]]:
    """All functions, the start values and the weights; returns by backend the function to its file's name."""
    servable, graphs = source.servable, {}
    for backend in (ONNX,) if publication.only_onnx else (ONNX, TORCHSCRIPT):
        # Convolutions suit ONNX Runtime alone.
        convolve = publication.convolve and backend == ONNX
        functions = _functions(servable, publication.tick_cap, convolve=convolve)
        graphs[backend] = {name: f"{name}.{ENDINGS[backend]}" for name in functions}
        for name, function in functions.items():
            _write(function, backend, folder / graphs[backend][name])
    save_file(servable.start(), folder / START)
    for name, text in source.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    if not publication.only_onnx:
        weights = {name: tensor.contiguous() for name, tensor in source.model.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
    for path in folder.glob("*.safetensors"):
        # safetensors writes for its owner alone; a server often runs as somebody else.
        path.chmod(0o644)
    return graphs


def _write(function: _Function, backend: str, path: Path) -> None:
    if backend == TORCHSCRIPT:
        write_torchscript(function.module, function.example, path)
        return
    write_onnx(function.module, function.example, function.arguments, function.results, path, cut=function.cut)


def _names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs]


def _describe(
    source: Source,
    backend: str,
    files: Mapping[str, str],
    folder: Path,
    inputs: Sequence[Tensor],
    publication: Publication,
) -> ArtefactMessage:
    """Compare an artefact with eager and say how closely it follows."""
    servable, form = source.servable, OnnxArtefact if backend == ONNX else TorchScriptArtefact
    artefact = form(**{name: folder / file for name, file in files.items()})
    agreement = measure_agreement(
        servable,
        artefact,
        inputs,
        publication.certainty_threshold,
        energy_threshold=publication.energy_threshold,
        energy_delta=publication.energy_delta,
    )
    chain = measure_chain(servable, artefact, inputs) if isinstance(servable, ServableDiffusion) else None
    return describe_artefact(backend, files, OPSET if backend == ONNX else 0, agreement, chain)


def _set_defaults(manifest: Manifest, publication: Publication) -> None:
    manifest.name, manifest.description = publication.name, publication.description
    for name in ("certainty_threshold", "abstain_below", "patience", "energy_threshold", "energy_delta"):
        value = getattr(publication, name)
        if value is not None:
            setattr(manifest.stop, name, value)
    if manifest.HasField("diffusion"):
        manifest.diffusion.steps = min(publication.steps, manifest.diffusion.levels)
        manifest.diffusion.eta = publication.eta
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
