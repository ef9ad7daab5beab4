"""Lines into one file, .jsonl, .csv or .parquet: written aside and renamed, so that half of one is never seen."""

import csv
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from serving.mismatch import quote
from serving.scoring.lines import Layout
from serving.terminal.image_files import CannotWrite, check_writable

_TABLE_LINES = 1024  # that go into a Parquet file together


class Sink(ABC):
    """Takes lines for a file."""

    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        self._file, self._layout = file, layout

    @abstractmethod
    def write(self, line: dict[str, Any]) -> None:
        """Add one, with a value for each column."""

    @abstractmethod
    def finish(self) -> None:
        """Nothing follows: write what is left."""


@contextmanager
def writing(path: Path, layout: Layout) -> Iterator[Sink]:
    """A sink whose file is there once the block has ended well, and otherwise not.

    Raises:
        CannotWrite: no such file can be there, or there is no room, or a value that the format cannot hold.
    """
    check_writable(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with aside.open("xb") as file:
            sink = _SINKS[path.suffix.lower()](file, layout)
            yield sink
            sink.finish()
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise CannotWrite(f"{path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


class JsonLines(Sink):
    """One JSON object a line."""

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, default=str).encode() + b"\n")

    def finish(self) -> None:
        pass


class Csv(Sink):
    """Comma-separated, the columns' names first; several labels stand in one field with blanks between them."""

    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        super().__init__(file, layout)
        if layout.logits:
            raise CannotWrite("logits do not fit a .csv file; .jsonl and .parquet hold them")
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._lines = csv.DictWriter(self._text, layout.names())
        self._lines.writeheader()

    def write(self, line: dict[str, Any]) -> None:
        self._lines.writerow({name: _field(value) for name, value in line.items()})

    def finish(self) -> None:
        self._text.detach()  # else it would close the file


class Parquet(Sink):
    """A table; the types of kept columns are those of the first lines."""

    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        super().__init__(file, layout)
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise CannotWrite("Parquet takes pyarrow, which is not installed: pip install pyarrow") from None
        self._pyarrow, self._parquet = pyarrow, parquet
        self._waiting: list[dict[str, Any]] = []
        self._writer: Any = None

    def write(self, line: dict[str, Any]) -> None:
        self._waiting.append(line)
        if len(self._waiting) >= _TABLE_LINES:
            self._flush()

    def finish(self) -> None:
        if self._waiting or self._writer is None:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        try:
            if self._writer is None:
                self._writer = self._parquet.ParquetWriter(self._file, self._schema())
            self._writer.write_table(self._pyarrow.Table.from_pylist(self._waiting, self._writer.schema))
        except self._pyarrow.ArrowException as error:
            raise CannotWrite(f"cannot write as Parquet: {quote(str(error), 300)}") from error
        self._waiting = []

    def _schema(self) -> Any:
        made, layout = self._pyarrow, self._layout
        several = made.list_ if layout.positions else lambda one: one
        logits = made.list_(made.float32())
        types = {
            "source": made.string(),
            "row": made.int64(),
            "prediction": several(made.string()),
            "score": several(made.float32()),
            "certainty": made.float32(),
            "ticks_used": made.int32(),
            "answer_tick": made.int32(),
            "stop_reason": made.string(),
            "abstained": made.bool_(),
            "error": made.string(),
            "logits": several(logits),
        }
        for name in layout.kept:
            found = made.array([line[name] for line in self._waiting]).type
            types[name] = made.string() if made.types.is_null(found) else found
        return made.schema([(name, types[name]) for name in layout.names()])


_SINKS: dict[str, type[Sink]] = {".jsonl": JsonLines, ".csv": Csv, ".parquet": Parquet}


def _field(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value
