"""How bad input is worded, whoever it comes from: what it is about, what was met, what is expected.

Raised deep inside, caught once at each edge, where the sentence becomes an `InvalidRequest` or a `BundleRefused`.
"""

from collections.abc import Iterable

from serving.errors import Refusal


class Mismatch(ValueError):
    """Something is not what it should be."""

    refusal: Refusal = "invalid"
    """What it makes of a bundle that it is found in."""

    def __init__(self, what: str, got: object, expected: object) -> None:
        super().__init__(f"{what}: got {got}, expected {expected}")


class Damaged(Mismatch):
    """A file is not the one that was described: missing, cut short, or of other bytes."""

    refusal = "damaged"


def quote(value: object, limit: int = 60) -> str:
    """`value` as Python writes it, cut short: what a stranger sent may be megabytes, and a gRPC status holds 8 kB."""
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def listing(names: Iterable[object], limit: int = 20) -> str:
    """Names for a sentence: `a, b, c`, or `none`; many or long ones are cut short."""
    found = [str(name)[:60] for name in names]
    shown = ", ".join(found[:limit])
    return (f"{shown}, ... ({len(found)} in all)" if len(found) > limit else shown) or "none"
