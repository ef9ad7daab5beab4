"""A program's functions as TorchScript: traced, frozen, with free rows."""

import io
import logging
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning


def write_torchscript(function: nn.Module, example: Sequence[Tensor], path: Path) -> None:
    """Trace, freeze and write one function.

    Args:
        example: one tensor for each argument, with more than one row: one is a size that tracing may bake in.
    """
    archive = io.BytesIO()
    with quiet(), torch.no_grad():
        # torch leaves it untyped.
        traced = torch.jit.trace(function.eval(), tuple(example), check_trace=True)  # type: ignore[no-untyped-call]
        torch.jit.save(torch.jit.freeze(traced), archive)
    _strip(archive, path)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the advice to leave TorchScript: torch 2.13 deprecates it, and it still runs.

    Nor with what `transformers` says when every attribute of its models is looked at, as tracing does, nor with the
    tracer's of its checks on shapes: whether a graph holds for other shapes is what measuring agreement tells.
    """
    library = logging.getLogger("transformers")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            warnings.filterwarnings("ignore", category=TracerWarning, module="transformers")
            yield
    finally:
        library.setLevel(level)


def _strip(archive: io.BytesIO, path: Path) -> None:
    """The same archive without its debugging notes, which hold the source paths of the machine that traced it."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
