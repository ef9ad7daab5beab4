"""A program's functions as TorchScript: traced, frozen, with free rows."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn


def write_torchscript(function: nn.Module, example: Sequence[Tensor], path: Path) -> None:
    """Trace, freeze and write one function.

    Args:
        example: one tensor for each argument, with more than one row: one is a size that tracing may bake in.
    """
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(function.eval(), tuple(example), check_trace=True)  # type: ignore[no-untyped-call]
        torch.jit.freeze(traced).save(str(path))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the advice to leave TorchScript: torch 2.13 deprecates it, and it still runs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        yield
