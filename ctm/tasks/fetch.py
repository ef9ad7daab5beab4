"""Fetching a file once: it comes in aside, its sha256 is checked, and only then does it get its name."""

import hashlib
import http.client
import os
import shutil
import tempfile
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen


class FetchError(RuntimeError):
    """A file could not be fetched, or is not the file that was expected."""


def cache_folder(name: str) -> Path:
    """Where fetched data of this name is kept: below XDG_CACHE_HOME, or ~/.cache without it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ctm-serving" / name


def fetch(address: str, path: Path, sha256: str, timeout_seconds: float = 60.0) -> Path:
    """The file at `path`, fetched from `address` unless it is there and whole.

    Raises:
        FetchError: the address does not answer, or what came is not the file of this sha256; nothing is kept then.
    """
    if path.is_file() and _sha256(path) == sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as aside:
        try:
            # The address is http or https: the configuration refuses anything else.
            with urlopen(address, timeout=timeout_seconds) as answer:
                shutil.copyfileobj(answer, aside)
            aside.flush()
            os.fsync(aside.fileno())
            met = _sha256(Path(aside.name))
            if met != sha256:
                size = os.path.getsize(aside.name)
                raise FetchError(f"{address} gave {size} bytes with sha256 {met}, expected sha256 {sha256}")
            os.replace(aside.name, path)
        except HTTPError as error:
            # It is an answer too, and holds its connection until it is closed.
            with error:
                raise FetchError(f"{address} could not be fetched: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            raise FetchError(f"{address} could not be fetched: {error}") from error
        finally:
            Path(aside.name).unlink(missing_ok=True)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
