"""Gradient checkpointing: what a function computed on the way is not kept for the backward pass, but computed again.

Memory for time: of each tick and of each layer of the denoiser only what goes in is kept (arXiv 1604.06174).
"""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import torch
from torch.utils.checkpoint import checkpoint

A = TypeVarTuple("A")
R = TypeVar("R")


def computed(function: Callable[[*A], R], again: bool, *arguments: *A) -> R:
    """The function's result; with `again`, what it is differentiated by is computed once more when that is done.

    Its chance is drawn once: the second run meets the generator as the first did.
    """
    if not again or not torch.is_grad_enabled():
        return function(*arguments)
    result: R = checkpoint(function, *arguments, use_reentrant=False)
    return result
