"""Text as Markdown wants it: tables, commands, and words of others as nothing but words."""

import re
from collections.abc import Iterable, Mapping, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def columns_table(columns: Mapping[str, Sequence[str]]) -> str:
    """A table of those columns that are not empty."""
    filled = {head: cells for head, cells in columns.items() if cells}
    return table(list(filled), zip(*filled.values(), strict=True))


def plain(text: str) -> str:
    """Text from elsewhere on one line, with nothing in it that Markdown or HTML would act on."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(text.split()))


def code(*lines: str) -> str:
    """Commands in a fence, one that nothing in them can close."""
    text = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"


def number(value: float) -> str:
    """A float32 as people write it: 0.8, not 0.800000012."""
    return f"{value:.6g}"
