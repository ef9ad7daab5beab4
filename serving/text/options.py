"""What a caller asked of a chain of text, resolved: how long, how to draw, where to stop."""

from dataclasses import dataclass, field
from math import isfinite

from protos import ctm_serving_pb2 as pb
from serving.mismatch import Mismatch
from serving.options import Readers, number, of_kind, read_options
from serving.text.sampling import Sampling

MOST_STOPS = 16
LONGEST_STOP = 256
"""Characters of a stop text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOptions:
    """A chain's options, every one set."""

    max_links: int = 1
    """Tokens of one row, at most."""
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()


def text_options(message: pb.ChainPolicy, *, max_links: int) -> TextOptions:
    """The options that a message holds, with the defaults for what it leaves out.

    Args:
        max_links: no request may ask for more.

    Raises:
        Mismatch: an option that there is not, of another kind, or out of its range.
    """
    links = message.max_links if message.HasField("max_links") else 1
    if not 1 <= links <= max_links:
        raise Mismatch("chain.max_links", links, f"1 to {max_links}, this server's limit")
    found = read_options(message, _READ)
    stops = found.pop("stop", ())
    return TextOptions(
        max_links=links,
        sampling=Sampling(**found),
        stops=stops,
    )


def _temperature(value: pb.Value) -> float:
    temperature = number("temperature", value)
    if not (isfinite(temperature) and temperature >= 0):
        raise Mismatch("chain.options, temperature", temperature, "a number of at least 0; 0 takes the best token")
    return temperature


def _top_k(value: pb.Value) -> int:
    top_k = int(of_kind("top_k", value, "integer"))
    if top_k < 0:
        raise Mismatch("chain.options, top_k", top_k, "at least 0; 0 for all tokens")
    return top_k


def _top_p(value: pb.Value) -> float:
    top_p = number("top_p", value)
    if not 0 < top_p <= 1:
        raise Mismatch("chain.options, top_p", top_p, "a share in (0, 1]")
    return top_p


def _stop(value: pb.Value) -> tuple[str, ...]:
    found = of_kind("stop", value, "text", "texts")
    stops = (found,) if isinstance(found, str) else tuple(found.values)
    if len(stops) > MOST_STOPS:
        raise Mismatch("chain.options, stop", f"{len(stops)} texts", f"at most {MOST_STOPS}")
    for stop in stops:
        if not 1 <= len(stop) <= LONGEST_STOP:
            raise Mismatch("chain.options, stop", f"a text of {len(stop)} characters", f"1 to {LONGEST_STOP}")
    return stops


_READ: Readers = {
    "temperature": _temperature,
    "top_k": _top_k,
    "top_p": _top_p,
    "stop": _stop,
}
