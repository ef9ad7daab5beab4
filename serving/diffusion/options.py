"""What a caller asked of a chain of reverse steps, resolved: how many, how random, which images to send."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protos import ctm_serving_pb2 as pb
from serving.diffusion.model import DiffusionModel
from serving.mismatch import Mismatch
from serving.options import number, of_kind, read_options


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionOptions:
    """A chain's options, every one set."""

    steps: int
    """Of the plan: reverse steps of one row, fewer where a stride takes several at once."""
    eta: float
    """0 deterministic, 1 ancestral."""
    every: int = 1
    """The image is sent at every n-th link and at the last; 0: at the last alone."""
    stride: int = 1
    """Steps of the plan that a row may take at once when it is certain."""


def diffusion_options(message: pb.ChainPolicy, model: DiffusionModel, *, max_links: int) -> DiffusionOptions:
    """The options that a message holds, with the model's defaults for what it leaves out.

    Args:
        max_links: no request may ask for more steps.

    Raises:
        Mismatch: an option that there is not, of another kind, or out of its range.
    """
    if message.HasField("max_links"):
        expected = "none: diffusion takes the option steps, as many as its chain has links"
        raise Mismatch("chain.max_links", message.max_links, expected)
    found = read_options(message, {"steps": _steps(model), "eta": _eta, "every": _every, "stride": _stride})
    options = DiffusionOptions(**{"steps": model.steps, "eta": model.eta, **found})
    if options.steps > max_links:
        raise Mismatch("chain.options, steps", options.steps, f"at most {max_links}, this server's limit")
    return options


def _steps(model: DiffusionModel) -> Callable[[pb.Value], Any]:
    def read(value: pb.Value) -> int:
        return _whole("steps", value, 1, model.levels, f"1 to {model.levels}, the levels of noise that the model knows")

    return read


def _eta(value: pb.Value) -> float:
    eta = number("eta", value)
    if not 0 <= eta <= 1:
        raise Mismatch("chain.options, eta", eta, "a number in [0, 1]: 0 deterministic, 1 ancestral")
    return eta


def _every(value: pb.Value) -> int:
    return _whole("every", value, 0, None, "at least 0; 0 for the last image alone")


def _stride(value: pb.Value) -> int:
    return _whole("stride", value, 1, None, "at least 1 step at once")


def _whole(name: str, value: pb.Value, least: int, most: int | None, expected: str) -> int:
    found = int(of_kind(name, value, "integer"))
    if found < least or (most is not None and found > most):
        raise Mismatch(f"chain.options, {name}", found, expected)
    return found
