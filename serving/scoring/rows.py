"""One row of a data set, and how a value that stands in a table becomes what a model takes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serving.manifest import tensor_spec
from serving.mismatch import Mismatch, quote
from serving.request import Array
from serving.terminal.images import Loaded, UnfitInput
from serving.terminal.kinds import Kind, is_typed
from serving.wire import check_values


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """What to think about, or why there is nothing to think about."""

    source: str
    """The file, or whatever names where it comes from."""
    index: int = 0
    """Of the row in its source."""
    values: Array | None = None
    """In the input's shape and datatype; None: the row is bad."""
    error: str = ""
    """Of a bad row: a sentence."""
    inverted: bool = False
    """Whether a picture's light and dark were swapped, because its border is light."""
    kept: Mapping[str, Any] = field(default_factory=dict)
    """Columns to be written beside the outcome."""


class RowMaker:
    """Makes rows for one model; a value that it cannot take makes a bad row, never an error.

    Args:
        invert: as of `images.load`.
    """

    def __init__(self, kind: Kind, *, invert: bool | None = None) -> None:
        self.kind = kind
        self._invert = invert
        self._spec = tensor_spec(f"input {quote(kind.spec.name)}", kind.spec)

    def from_file(self, path: Path) -> list[Row]:
        """The rows of a picture, or of whatever else the model's kind reads as a whole."""
        try:
            loaded = self.kind.load(str(path), self._invert)
        except UnfitInput as error:
            return [Row(source=str(path), error=str(error))]
        return [self._row(str(path), index, one, {}) for index, one in enumerate(loaded)]

    def from_value(
        self, source: str, index: int, value: Any, kept: Mapping[str, Any] | None = None, folder: Path = Path()
    ) -> Row:
        """The row that a value of a table makes.

        Args:
            value: numbers, nested or flat, in lists or an array; an encoded picture, as bytes or as Hugging Face's
                `{"bytes": ..., "path": ...}`; signs; or the path of a picture.
            folder: which such a path starts from.
        """
        try:
            loaded = self._load(f"row {index}", value, folder)
        except (UnfitInput, Mismatch) as error:
            return Row(source=source, index=index, error=str(error), kept=kept or {})
        return self._row(source, index, loaded, kept or {})

    def _row(self, source: str, index: int, loaded: Loaded, kept: Mapping[str, Any]) -> Row:
        try:  # here, so that it fails alone: in a request it would fail its company
            check_values(loaded.name, loaded.values, self._spec)
        except Mismatch as error:
            return Row(source=source, index=index, error=str(error), kept=kept)
        return Row(source=source, index=index, values=loaded.values, inverted=loaded.inverted, kept=kept)

    def _load(self, name: str, value: Any, folder: Path) -> Loaded:
        if isinstance(value, dict):
            encoded = value.get("bytes")
            value = value.get("path") if encoded is None else encoded
        if isinstance(value, bytes):
            return self.kind.decode(name, value, self._invert)
        if isinstance(value, str):
            rows = self.kind.load(value if is_typed(value) else str(folder / value), self._invert)
            if len(rows) != 1:
                raise Mismatch(f"{name}, rows of {quote(value)}", len(rows), "1")
            return rows[0]
        if value is None:
            raise Mismatch(name, "nothing", "a value")
        return self.kind.take(name, _numbers(name, value))


def _numbers(name: str, value: Any) -> Array:
    try:
        numbers: Array = np.asarray(value)
        if numbers.dtype.kind == "O":  # arrays in arrays, as tables hand over nested lists
            numbers = np.array([np.asarray(one) if one.dtype.kind != "O" else np.stack(one) for one in value])
    except (ValueError, TypeError, AttributeError) as error:
        raise Mismatch(name, quote(value), "numbers, as many in each list") from error
    return numbers
