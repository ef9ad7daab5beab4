"""Text files, packed with gzip or not, and Parquet files as a stream of documents; no file is ever held whole."""

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pyarrow
import pyarrow.parquet
import pyarrow.types

from ctm.language.errors import CorpusError

GZIP_START = b"\x1f\x8b"
PARQUET_START = b"PAR1"
MOST_WITHOUT_A_LINE_END = 4
"""A document that finds no line end is cut within a line when it is this many times as long as it should be."""
PARQUET_ROWS = 256
"""Rows of a Parquet file that are held at once."""


def read_documents(path: Path, column: str, document_bytes: int) -> Iterator[str]:
    """The documents of one file, in order; what they are joined to is what the file says.

    Args:
        column: of a Parquet file, whose rows are the documents.
        document_bytes: how long a document of a text file is, up to the next line end.

    Raises:
        CorpusError: the file cannot be read, is empty, is not UTF-8, or has no such column.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            if start == PARQUET_START:
                documents = _rows(path, file, column)
            elif start.startswith(GZIP_START):
                documents = _pieces(path, gzip.GzipFile(fileobj=file).readline, document_bytes)
            else:
                documents = _pieces(path, file.readline, document_bytes)
            first = next(documents, None)
            if first is None:
                raise CorpusError(f"{path} is empty")
            yield first
            yield from documents
    except (EOFError, gzip.BadGzipFile, zlib.error, pyarrow.ArrowException) as error:
        raise CorpusError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}") from error


def _pieces(path: Path, read_line: Callable[[int], bytes], document_bytes: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, pending = 0, bytearray()

    def decode(last: bool) -> str:
        held_back = len(decoder.getstate()[0])
        try:
            return decoder.decode(bytes(pending), final=last)
        except UnicodeDecodeError as error:
            where = offset - len(pending) - held_back + error.start
            raise CorpusError(f"{path} is not UTF-8: {error.reason} at byte {where:,}") from error

    while line := read_line(document_bytes):
        pending += line
        offset += len(line)
        whole = line.endswith(b"\n") or len(pending) >= MOST_WITHOUT_A_LINE_END * document_bytes
        if whole and len(pending) >= document_bytes:
            yield decode(last=False)
            pending.clear()
    if rest := decode(last=True):
        yield rest


def _rows(path: Path, file: IO[bytes], column: str) -> Iterator[str]:
    table = pyarrow.parquet.ParquetFile(file)
    schema = table.schema_arrow
    if column not in schema.names:
        raise CorpusError(f"{path} has no column {column!r}, its columns are {', '.join(schema.names)}")
    kind = schema.field(column).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise CorpusError(f"{path}: column {column!r} must hold strings, it holds {kind}")
    row = 0
    for batch in table.iter_batches(PARQUET_ROWS, columns=[column]):
        for value in batch.column(0):
            try:
                document = value.as_py()
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{path} is not UTF-8: {error.reason} at byte {error.start:,} of row {row:,}"
                ) from error
            # Empty rows and rows of nothing are no documents.
            if document:
                yield document
            row += 1
