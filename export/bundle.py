"""Publishing: a bundle is written aside and renamed, so that nobody ever sees half of one.

<store>/.<name>-<random>/      being written; servers ignore names that begin with a dot
<store>/<name>/<version>/      there at once, whole
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from export.errors import ExportError

LONGEST_NAME = 100
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")


def check_name(name: str) -> None:
    """ExportError unless the name can be a folder's anywhere."""
    if not NAME.fullmatch(name):
        raise ExportError(
            f"a model's name is letters, digits, '.', '_' and '-', at most {LONGEST_NAME}, beginning with one of the "
            f"first two; got {name[: LONGEST_NAME + 1]!a}"
        )


@contextmanager
def draft(store: Path, name: str) -> Iterator[Path]:
    """An empty folder in the store that servers ignore; what is left of it in the end is removed."""
    check_name(name)
    store.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=store))
    try:
        # Of mkdtemp's making only its owner may look inside; a server often runs as somebody else.
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, store: Path, name: str, finish: Callable[[int], None]) -> Path:
    """Give a draft its place in the store, as the next free version.

    Args:
        finish: writes into the draft what depends on the version; called again if another export took that version.
    """
    versions = store / name
    while True:
        version = _next_version(versions)
        finish(version)
        for path in (*folder.iterdir(), folder):
            _synchronise(path)
        versions.mkdir(exist_ok=True)
        try:
            # A folder cannot take the place of one that holds something: of two exports one fails here.
            folder.rename(versions / str(version))
        except OSError:
            if (versions / str(version)).exists():
                continue
            with suppress(OSError):
                versions.rmdir()  # unless it holds other versions
            raise
        for path in (versions, store):
            _synchronise(path)
        return versions / str(version)


def _next_version(versions: Path) -> int:
    taken = [int(path.name) for path in versions.glob("*") if path.name.isdecimal()]
    return max(taken, default=0) + 1


def _synchronise(path: Path) -> None:
    """Have a file or folder on the disk, not only on its way there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
