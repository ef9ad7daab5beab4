"""Files as rows: pictures, arrays (.npy, .npz) and tables (.jsonl, .parquet), read as their rows are needed.

Raises UnfitInput for what can be told before a row is read; whatever is wrong with one row, or with a file that breaks
off, becomes a bad row.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from serving.mismatch import listing, quote
from serving.request import Array
from serving.scoring.rows import Row, RowMaker
from serving.terminal.images import UnfitInput

ROWS_AT_ONCE = 256
"""Read of a table into memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which columns of a table are read."""

    input: str | None = None
    """The model's input; None: the one that is called like it, else the only one."""
    kept: Sequence[str] = ()
    """Written beside the outcomes."""


class Source(ABC):
    """One file."""

    def __init__(self, path: Path, maker: RowMaker, columns: Columns) -> None:
        self.path, self.name = path, str(path)
        self._maker, self._columns = maker, columns

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Each row of the file once, in order."""

    def count(self) -> int | None:
        """How many there are; None when only reading tells."""
        return None

    def _choose(self, names: Sequence[str]) -> str:
        """The column that holds the input.

        Raises:
            UnfitInput: it is not there, or one that is to be kept is not.
        """
        wanted = self._columns.input or self._maker.kind.spec.name
        for name in self._columns.kept:
            if name not in names:
                raise UnfitInput(f"{self.name}: got no {quote(name)} to keep; there is {listing(names)}")
        if wanted in names:
            return wanted
        if self._columns.input is None and len(names) == 1:
            return names[0]
        raise UnfitInput(f"{self.name}: got no {quote(wanted)}; there is {listing(names)}: --column says which it is")


class Whole(Source):
    """A picture: one row."""

    def __init__(self, path: Path, maker: RowMaker, columns: Columns) -> None:
        super().__init__(path, maker, columns)
        if columns.kept:
            raise UnfitInput(f"{self.name}: a picture has no columns, got {quote(columns.kept[0])} to keep")

    def rows(self) -> Iterator[Row]:
        yield from self._maker.from_file(self.path)

    def count(self) -> int | None:
        return 1


class Arrays(Source):
    """The rows of a .npy array, or of one of those in a .npz file; the others may be kept."""

    def __init__(self, path: Path, maker: RowMaker, columns: Columns) -> None:
        super().__init__(path, maker, columns)
        shape = tuple(maker.kind.spec.shape)
        arrays = self._read()
        values = arrays[self._choose(list(arrays))]
        self._values = values[None] if values.shape == shape else values
        self._kept = {name: arrays[name] for name in columns.kept}
        if not self._values.ndim:
            raise UnfitInput(f"{self.name}: got one number, expected rows")
        for name, kept in self._kept.items():
            if kept.ndim == 0 or len(kept) != len(self._values):
                met = len(kept) if kept.ndim else "no"
                raise UnfitInput(f"{self.name}, {quote(name)}: got {met} rows, expected {len(self._values)}")

    def rows(self) -> Iterator[Row]:
        for index in range(len(self._values)):
            kept = {name: values[index].tolist() for name, values in self._kept.items()}
            yield self._maker.from_value(self.name, index, self._values[index], kept)

    def count(self) -> int | None:
        return len(self._values)

    def _read(self) -> dict[str, Array]:
        wanted = self._maker.kind.spec.name
        try:
            if self.path.suffix.lower() == ".npy":  # not read whole: there are larger ones than memory
                return {self._columns.input or wanted: np.load(self.path, mmap_mode="r", allow_pickle=False)}
            with np.load(self.path, allow_pickle=False) as archive:
                needed = {self._columns.input or wanted, *self._columns.kept}
                names = archive.files
                return {name: archive[name] if name in needed or len(names) == 1 else np.empty(0) for name in names}
        except OSError as error:
            raise UnfitInput(f"{self.name}: {error.strerror or error}") from error
        except (ValueError, EOFError, BadZipFile, KeyError, TypeError, SyntaxError, MemoryError) as error:
            raise UnfitInput(f"{self.name}: not readable as {self.path.suffix} ({quote(str(error), 200)})") from error


class JsonLines(Source):
    """A JSON object a line, or the input itself. Paths in it start from its folder."""

    def rows(self) -> Iterator[Row]:
        with self.path.open("rb") as lines:
            for index, line in enumerate(line for line in lines if line.strip()):
                yield self._row(index, line)

    def _row(self, index: int, line: bytes) -> Row:
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                value = {self._columns.input or self._maker.kind.spec.name: value}
            kept = {name: value[name] for name in self._columns.kept if name in value}
            column = self._choose(list(value))
        except (ValueError, RecursionError) as error:
            return Row(source=self.name, index=index, error=f"row {index}: not JSON ({error})")
        except UnfitInput as error:
            return Row(source=self.name, index=index, error=str(error))
        return self._maker.from_value(self.name, index, value[column], kept, self.path.parent)


class Parquet(Source):
    """A table whose input column holds lists of numbers, encoded pictures, or paths from its folder."""

    def __init__(self, path: Path, maker: RowMaker, columns: Columns) -> None:
        super().__init__(path, maker, columns)
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise UnfitInput(f"{path}: Parquet takes pyarrow, which is not installed: pip install pyarrow") from None
        self._broken = ArrowException
        try:
            self._file = parquet.ParquetFile(path)
        except (ArrowException, OSError) as error:
            raise UnfitInput(f"{path}: not readable as Parquet ({quote(str(error), 200)})") from error
        self._column = self._choose(self._file.schema_arrow.names)

    def rows(self) -> Iterator[Row]:
        names = list(dict.fromkeys([self._column, *self._columns.kept]))
        index = 0
        try:
            for batch in self._file.iter_batches(ROWS_AT_ONCE, columns=names):
                for record in batch.to_pylist():
                    kept = {name: record[name] for name in self._columns.kept}
                    value = record[self._column]
                    yield self._maker.from_value(self.name, index, value, kept, self.path.parent)
                    index += 1
        except (self._broken, OSError) as error:
            broken = f"{self.name}: cannot be read from row {index} on ({quote(str(error), 200)})"
            yield Row(source=self.name, index=index, error=broken)

    def count(self) -> int | None:
        return int(self._file.metadata.num_rows)


_KINDS: dict[str, type[Source]] = {
    ".npy": Arrays,
    ".npz": Arrays,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".parquet": Parquet,
}


def find_files(given: Sequence[str]) -> list[Path]:
    """The files, in the order given; of a folder all in it and below, by name, but for hidden ones.

    Raises:
        UnfitInput: one is not there, or a folder holds none.
    """
    found: list[Path] = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            below = sorted(one for one in path.rglob("*") if one.is_file() and not _hidden(one.relative_to(path)))
            if not below:
                raise UnfitInput(f"{path}: got an empty folder, expected files in it")
            found += below
        elif path.is_file():
            found.append(path)
        else:
            raise UnfitInput(f"{path}: No such file or directory")
    return found


def open_source(path: Path, maker: RowMaker, columns: Columns) -> Source:
    """The file as rows, by its ending; what is none of ours is taken for a picture.

    Raises:
        UnfitInput: it is not what its ending says, or lacks a column.
    """
    return _KINDS.get(path.suffix.lower(), Whole)(path, maker, columns)


def all_rows(paths: Sequence[Path], maker: RowMaker, columns: Columns) -> Iterator[Row]:
    """Every row of every file; a file that cannot be opened is one bad row."""
    for path in paths:
        try:
            yield from open_source(path, maker, columns).rows()
        except UnfitInput as error:
            yield Row(source=str(path), error=str(error))
        except OSError as error:
            yield Row(source=str(path), error=f"{path}: {error.strerror or error}")


def count_rows(paths: Sequence[Path], maker: RowMaker, columns: Columns) -> int | None:
    """How many rows there are, where that is known without reading them."""
    total = 0
    for path in paths:
        try:
            count = open_source(path, maker, columns).count()
        except UnfitInput:
            count = 1
        if count is None:
            return None
        total += count
    return total


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
