"""A published model, checked whole before it may serve.

<store>/<name>/<version>/manifest.json, start.safetensors, encode.onnx, tick.onnx, ...
"""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from protos.ctm_bundle_pb2 import File, Manifest
from serving.diffusion.model import DiffusionModel, diffusion_model
from serving.errors import BundleRefused
from serving.manifest import MANIFEST, program, read, stop_defaults
from serving.mismatch import Damaged, Mismatch, listing, quote
from serving.program import Program, TensorSpec
from serving.request import Array, StopPolicy, StreamPolicy
from serving.text.model import TextModel, text_model

START = "start.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bundle:
    """One version of one model. Everything in it was checked."""

    path: Path
    name: str
    version: int
    manifest: Manifest = field(repr=False)
    program: Program = field(repr=False)
    labels: tuple[str, ...]
    """One for each class, or none."""
    stop: StopPolicy
    """What a request's unset fields become."""
    abstain_below: float
    tick_cap: int
    """No request may ask for more ticks."""
    text: TextModel | None = field(default=None, repr=False)
    """Of models of text: what makes a chain of their thoughts."""
    diffusion: DiffusionModel | None = field(default=None, repr=False)
    """Of diffusion models: the same."""
    policies: dict[tuple[bytes, bytes], tuple[StopPolicy, StreamPolicy]] = field(
        default_factory=dict, init=False, repr=False
    )
    """How requests asked to stop and to stream, resolved (see `wire.py`): kept here, so that it goes when this goes."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    def graphs(self, kind: str) -> dict[str, Path]:
        """The files of one exported form of the program ("onnx", "torchscript"), by function; empty when not there."""
        for artefact in self.manifest.artefacts:
            if artefact.backend == kind:
                return {function: self.path / file for function, file in artefact.graphs.items()}
        return {}

    def read(self, name: str) -> bytes:
        """A file's content, which is what the manifest describes whatever became of the file since it was checked.

        Raises:
            Damaged: the file is another now, or gone.
            OSError: it cannot be read.
        """
        return _content(self.path, next(file for file in self.manifest.files if file.name == name))


def load_bundle(path: Path) -> Bundle:
    """Read and check the bundle in `<store>/<name>/<version>`.

    Raises:
        BundleRefused: it must not be served; the sentence names the bundle, the file, what was met and what is
            expected.
    """
    try:
        return _load(path)
    except (Mismatch, OSError, MemoryError) as error:
        reason = error.refusal if isinstance(error, Mismatch) else "unreadable"
        raise BundleRefused(
            f"bundle {path.parent.name}/{path.name} in {path.parent.parent}: {error}", reason=reason
        ) from error
    except Exception as error:  # whatever a library throws at what nobody thought of: the other bundles are served
        met = f"{type(error).__name__} {quote(str(error), 300)}"
        raise BundleRefused(
            f"bundle {path.parent.name}/{path.name} in {path.parent.parent}: got {met}, expected a sound one"
        ) from error


def _load(path: Path) -> Bundle:
    manifest = read(_inside(path, MANIFEST))
    if manifest.name != path.parent.name:
        raise Mismatch(f"{MANIFEST}: name", quote(manifest.name), f"{path.parent.name!r}, the folder's")
    if str(manifest.version) != path.name:
        raise Mismatch(f"{MANIFEST}: version", manifest.version, f"{path.name}, the folder's")
    check_files(path, manifest)
    described = program(manifest)
    files = {file.name: file for file in manifest.files}
    text = text_model(manifest, _content(path, files[manifest.text.tokenizer])) if manifest.HasField("text") else None
    diffusion = diffusion_model(manifest, described) if manifest.HasField("diffusion") else None
    return Bundle(
        path=path,
        name=manifest.name,
        version=manifest.version,
        manifest=manifest,
        program=replace(described, start=_start(_content(path, files[START]), described.state)),
        labels=text.tokenizer.labels() if text else tuple(manifest.labels),
        stop=stop_defaults(manifest),
        abstain_below=manifest.stop.abstain_below,
        tick_cap=manifest.tick_cap,
        text=text,
        diffusion=diffusion,
    )


def _inside(path: Path, name: str) -> Path:
    """The file of that name in the bundle, and nowhere else."""
    if not name or name != PurePath(name).name or "\\" in name or name.startswith("."):
        raise Mismatch("file name", quote(name), "a plain name, without folders")
    file = path / name
    if not file.is_file():
        raise Damaged(quote(name), "no such file", "a file in the bundle")
    if not file.resolve().is_relative_to(path.resolve()):
        raise Mismatch(quote(name), f"a link to {file.resolve()}", "a file in the bundle")
    return file


def check_files(path: Path, manifest: Manifest) -> None:
    """Compare every file of a bundle's folder with what its manifest says of it.

    Raises:
        Mismatch: one is not what it should be, or what is served has no hash.
        OSError: one cannot be read.
    """
    names = [file.name for file in manifest.files]
    if len(set(names)) != len(names):
        raise Mismatch(f"{MANIFEST}: files", listing(names), "each name once")
    needed = {START} | {file for artefact in manifest.artefacts for file in artefact.graphs.values()}
    if manifest.HasField("text"):
        needed.add(manifest.text.tokenizer)
    if missing := sorted(needed - set(names)):
        raise Mismatch(f"{MANIFEST}: files", listing(names), f"also {listing(missing)}: what is served has a hash")
    for file in manifest.files:
        _check_file(_inside(path, file.name), file)


def _check_file(path: Path, expected: File) -> None:
    size = path.stat().st_size
    if size != expected.size:
        raise Damaged(expected.name, f"{size} bytes", f"{expected.size} bytes")
    with path.open("rb") as stream:
        _check_hash(hashlib.file_digest(stream, "sha256").hexdigest(), expected)


def _content(path: Path, expected: File) -> bytes:
    """Read once, then checked: nothing can come between the check and the use."""
    with _inside(path, expected.name).open("rb") as stream:
        data = stream.read(expected.size + 1)
    if len(data) != expected.size:
        size = "more" if len(data) > expected.size else len(data)
        raise Damaged(expected.name, f"{size} bytes", f"{expected.size} bytes")
    _check_hash(hashlib.sha256(data).hexdigest(), expected)
    return data


def _check_hash(digest: str, expected: File) -> None:
    if digest != expected.sha256:
        raise Damaged(expected.name, f"sha256 {digest}", quote(expected.sha256, 70))


def _start(data: bytes, state: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """The start value of every state tensor, and nothing else."""
    try:
        values = load(data)
    except (SafetensorError, TypeError, ValueError, AttributeError, KeyError) as error:  # as datatypes numpy lacks do
        raise Mismatch(START, quote(str(error)), "a safetensors file") from error
    names = [spec.name for spec in state]
    if set(values) != set(names):
        raise Mismatch(f"{START}: tensors", listing(sorted(values)), listing(sorted(names)))
    for spec in state:
        found = values[spec.name]
        if found.dtype != spec.dtype or found.shape != spec.shape:
            got, expected = f"{found.dtype} {list(found.shape)}", f"{spec.dtype} {list(spec.shape)}"
            raise Mismatch(f"{START}: {spec.name!r}", got, expected)
        if not np.isfinite(found).all():
            raise Mismatch(f"{START}: {spec.name!r}", "NaN or infinity", "finite numbers")
    return values
