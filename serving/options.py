"""How a chain's options are read: each by a function of its own, which says what it met where it cannot take it."""

from collections.abc import Callable, Mapping
from typing import Any

from protos import ctm_serving_pb2 as pb
from serving.mismatch import Mismatch, listing, quote

Readers = Mapping[str, Callable[[pb.Value], Any]]

_KINDS = {
    "number": "a number",
    "integer": "an integer",
    "text": "a text",
    "texts": "texts",
    "flag": "a flag",
    "tensor": "a tensor",
}


def read_options(message: pb.ChainPolicy, readers: Readers) -> dict[str, Any]:
    """The options that a message holds, as their readers make them.

    Raises:
        Mismatch: an option that there is not, of another kind, or out of its range.
    """
    for name in sorted(message.options):
        if name not in readers:
            raise Mismatch("chain.options", quote(name), f"of {listing(readers)}")
    return {name: read(message.options[name]) for name, read in readers.items() if name in message.options}


def number(name: str, value: pb.Value) -> float:
    return float(of_kind(name, value, "number", "integer"))


def of_kind(name: str, value: pb.Value, *kinds: str) -> Any:
    """What the value holds."""
    kind = value.WhichOneof("kind")
    if kind not in kinds:
        got = "nothing" if kind is None else _KINDS[kind]
        raise Mismatch(f"chain.options, {name}", got, " or ".join(_KINDS[kind] for kind in kinds))
    return getattr(value, kind)
