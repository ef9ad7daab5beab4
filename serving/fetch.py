"""Bundles brought into the store from a folder or a Hugging Face repository, checked before they are there.

    FOLDER | ORG/REPO[@REVISION] -> <store>/.fetch-<random>/ -> every sha256 -> <store>/<name>/<version>/

A bundle says itself what it is called and which version it is. What it comes from is a stranger: no name of its making
leaves the folder that it is written to, and nothing that its manifest does not vouch for is taken along, but for its
card.
"""

import logging
import re
import shutil
import tempfile
from pathlib import Path, PurePath

from protos.ctm_bundle_pb2 import Manifest
from serving.bundle import check_files
from serving.errors import BundleRefused
from serving.hub import REPOSITORY, download
from serving.manifest import MANIFEST, read
from serving.mismatch import Damaged, Mismatch, quote

log = logging.getLogger(__name__)

_CARD = "README.md"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def fetch(source: str, store: Path) -> Path:
    """Bring a bundle into the store, unless that one is there already; returns its place.

    Args:
        source: a folder that holds a bundle, else ORG/REPO or ORG/REPO@REVISION.

    Raises:
        BundleRefused: there is none, it is not what its manifest says, or another one has its place in the store.
        InstallationLacks: a repository is asked for, and huggingface_hub is not installed.
    """
    try:
        folder, manifest = _locate(source)
        _check_names(manifest)
        return _bring(source, folder, manifest, store)
    except Mismatch as error:
        raise BundleRefused(f"{source}: {error}", reason=error.refusal) from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise BundleRefused(
            f"{source}: got {error.strerror or error}{where}, expected to copy it into {store}", reason="unreadable"
        ) from error


def _locate(source: str) -> tuple[Path, Manifest]:
    """The folder that holds the bundle's files, or a copy of them, and what its manifest says."""
    folder = Path(source)
    match = REPOSITORY.fullmatch(source)
    if folder.is_dir():
        return folder, _manifest(folder)
    if match is None:
        raise Mismatch("source", "no such folder", "a folder that holds a bundle, or ORG/REPO[@REVISION]")
    first, commit = download(match["id"], match["revision"], [MANIFEST])
    manifest = _manifest(first)
    _check_names(manifest)
    # By its commit: somebody may have pushed another in between.
    folder, _ = download(match["id"], commit, [MANIFEST, _CARD, *(file.name for file in manifest.files)])
    return folder, manifest


def _manifest(folder: Path) -> Manifest:
    if not (folder / MANIFEST).is_file():
        raise Damaged(MANIFEST, "no such file", "a bundle, as ctm-export publishes them")
    return read(folder / MANIFEST)


def _check_names(manifest: Manifest) -> None:
    if not _NAME.fullmatch(manifest.name):
        allowed = "up to 100 letters, digits, '.', '_' and '-', beginning with one of the first two"
        raise Mismatch(f"{MANIFEST}: name", quote(manifest.name), allowed)
    if not 1 <= manifest.version < 10**9:
        raise Mismatch(f"{MANIFEST}: version", manifest.version, "1 to 999999999")
    for file in manifest.files:
        if file.name != PurePath(file.name).name or "\\" in file.name or file.name.startswith(".") or not file.name:
            raise Mismatch(f"{MANIFEST}: files", quote(file.name), "plain names, without folders")


def _bring(source: str, folder: Path, manifest: Manifest, store: Path) -> Path:
    place = store / manifest.name / str(manifest.version)
    fields = {"source": source, "model": manifest.name, "version": manifest.version}
    if place.exists():
        _check_same(place, folder)
        log.info("bundle is there", extra=fields)
        return place
    store.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".fetch-", dir=store))
    try:
        aside.chmod(0o755)  # of mkdtemp's making only its owner may look inside
        for name in {MANIFEST, _CARD, *(file.name for file in manifest.files)}:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, aside / name)
        check_files(aside, manifest)
        place.parent.mkdir(exist_ok=True)
        try:
            aside.rename(place)
        except OSError:
            # Another server that shares the store was quicker.
            if not place.exists():
                raise
            _check_same(place, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    log.info("bundle fetched", extra=fields)
    return place


def _check_same(place: Path, folder: Path) -> None:
    if not (place / MANIFEST).is_file() or (place / MANIFEST).read_bytes() != (folder / MANIFEST).read_bytes():
        raise Mismatch(str(place), "another bundle of this name and version", "the same one, or none")
