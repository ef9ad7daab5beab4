"""A folder of published models: what stands in it, and what of it may serve.

<store>/<name>/<version>/        versions are 1, 2, 3, ..., compared as numbers; names with a leading dot are not ours
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

from serving.bundle import Bundle, load_bundle
from serving.errors import BundleRefused
from serving.mismatch import Mismatch, listing

__all__ = ["Bundle", "Looks", "find", "load_bundle", "look", "newest", "scan"]

Looks = tuple[tuple[str, int, int], ...]
"""Name, size in bytes and time of change in nanoseconds of each file in a folder."""


def newest(version_policy: str) -> int | None:
    """How many of the newest versions of a model serve: N of `latest:N`, None for `all`.

    Raises:
        Mismatch: neither of these.
    """
    if version_policy == "all":
        return None
    match = re.fullmatch(r"latest:([1-9]\d{0,8})", version_policy)
    if match is None:
        raise Mismatch("version policy", repr(version_policy), "latest:N (such as latest:1) or all")
    return int(match[1])


def find(root: Path) -> tuple[dict[str, dict[int, Path]], list[BundleRefused]]:
    """The folders of every model by version, and those that are named like none.

    Nothing is opened; a folder is a bundle once `load_bundle` says so.
    """
    try:
        folders = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    except OSError as error:
        return {}, [BundleRefused(f"store {root}: got {error.strerror}, expected a folder", reason="unreadable")]
    models: dict[str, dict[int, Path]] = {}
    refused: list[BundleRefused] = []
    for folder in folders:
        if not _is_text(folder.name):
            refused.append(
                BundleRefused(f"folder {folder.name!a} in {root}: expected a name in UTF-8", reason="misnamed")
            )
            continue
        try:
            versions, misnamed = _versions(folder) if folder.is_dir() else ({}, [])
        except OSError as error:
            met = f"model {folder.name} in {root}: got {error.strerror}"
            refused.append(BundleRefused(f"{met}, expected a folder", reason="unreadable"))
            continue
        refused += misnamed
        if versions:
            models[folder.name] = versions
    return models, refused


def look(folder: Path) -> Looks:
    """What a bundle looks like from outside: another look means that something was written since.

    Without inode numbers, which some network file systems make up anew each time. Nothing of a folder that cannot be
    read.
    """
    try:
        with os.scandir(folder) as entries:
            return tuple(sorted(_look(entry) for entry in entries))
    except OSError:
        return ()


def _look(entry: "os.DirEntry[str]") -> tuple[str, int, int]:
    try:
        found = entry.stat()
    except OSError:  # gone meanwhile, or a link to nowhere
        return entry.name, -1, -1
    return entry.name, found.st_size, found.st_mtime_ns


def scan(
    root: Path, version_policy: str = "latest:1", names: Collection[str] = ()
) -> tuple[list[Bundle], list[BundleRefused]]:
    """Load what may serve, by name and then by version, and say what may not and why.

    Args:
        version_policy: `latest:N` takes the newest N versions that are sound, so that a broken new version does not
            take an old one from its callers; `all` takes every sound one.
        names: the models to serve; none given means all.
    """
    most = newest(version_policy)
    models, refused = find(root)
    for name in names:
        if name not in models:
            refused.append(BundleRefused(f"model {name!r}: not in store {root}, which holds {listing(models)}"))
    bundles: list[Bundle] = []
    for name, versions in models.items():
        if names and name not in names:
            continue
        sound: list[Bundle] = []
        for version in sorted(versions, reverse=True):
            if len(sound) == most:
                break
            try:
                sound.append(load_bundle(versions[version]))
            except BundleRefused as error:
                refused.append(error)
        bundles += reversed(sound)
    return bundles, refused


def _is_text(name: str) -> bool:
    """Whether a file's name can be told to anybody."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _versions(folder: Path) -> tuple[dict[int, Path], list[BundleRefused]]:
    versions, refused = {}, []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if re.fullmatch(r"[1-9][0-9]{0,8}", path.name):
            versions[int(path.name)] = path
        else:
            sentence = f"bundle {folder.name}/{path.name}: expected a version, 1, 2, 3, ..."
            refused.append(BundleRefused(sentence, reason="misnamed"))
    return versions, refused
