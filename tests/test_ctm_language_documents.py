"""Cutting text files and Parquet files into documents, and naming what cannot be read."""

import gzip
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small_corpus import grammar, write_text

from ctm.language.documents import PARQUET_ROWS, read_documents
from ctm.language.errors import CorpusError


def documents(path: Path, document_bytes: int = 100, column: str = "text") -> list[str]:
    return list(read_documents(path, column, document_bytes))


def test_a_text_file_is_cut_at_the_first_line_end_after_so_many_bytes(tmp_path: Path) -> None:
    text = grammar()
    cut = documents(write_text(tmp_path / "text", text))
    assert "".join(cut) == text
    for document in cut[:-1]:
        # The line before the last one did not yet suffice.
        assert len("".join(document.splitlines(keepends=True)[:-1]).encode()) < 100 <= len(document.encode())
        assert document.endswith("\n")


def test_a_packed_file_is_cut_as_the_plain_one(tmp_path: Path) -> None:
    plain, packed = write_text(tmp_path / "plain", grammar()), tmp_path / "packed"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert documents(packed) == documents(plain)


@given(text=st.text(min_size=1), document_bytes=st.integers(1, 30))
@example(text="🐟" * 40, document_bytes=1)
@example(text="🐟" * 40 + "\n", document_bytes=3)
@example(text="a\r\nb\rc\u2028d\n\n\n", document_bytes=1)
def test_no_character_is_lost_or_cut_even_without_line_ends(
    tmp_path_factory: pytest.TempPathFactory, text: str, document_bytes: int
) -> None:
    cut = documents(write_text(tmp_path_factory.mktemp("text") / "text", text), document_bytes)
    assert "".join(cut) == text
    assert all(cut), "no document is empty"
    assert max(len(document.encode()) for document in cut) <= 5 * document_bytes + 3


def write_parquet(path: Path, texts: object, column: str = "text") -> Path:
    pyarrow.parquet.write_table(pyarrow.table({column: texts, "number": pyarrow.array(range(len(texts)))}), path)  # type: ignore[arg-type]  # a list or a pyarrow array
    return path


def test_a_row_of_a_parquet_file_is_a_document(tmp_path: Path) -> None:
    texts = [f"row {number}\nfée 🐟 " * 20 for number in range(2 * PARQUET_ROWS + 5)]
    assert documents(write_parquet(tmp_path / "rows.parquet", texts)) == texts


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(["a", "", None, "b"], id="rows of nothing are no documents"),
        pytest.param(pyarrow.array(["a", "b"], pyarrow.large_string()), id="large strings"),
        pytest.param(pyarrow.array(["a", "b"]).dictionary_encode(), id="a dictionary of strings"),
    ],
)
def test_which_rows_are_documents(tmp_path: Path, texts: object) -> None:
    assert documents(write_parquet(tmp_path / "rows.parquet", texts, "body"), column="body") == ["a", "b"]


def _not_utf8_in_parquet() -> pyarrow.Array:
    offsets, data = pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0\5\0\0\0"), pyarrow.py_buffer(b"okab\xff")
    return pyarrow.StringArray.from_buffers(2, offsets, data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is empty", id="an empty file"),
        pytest.param(gzip.compress(b""), "is empty", id="nothing packed"),
        pytest.param(b"ab\xffcd", "is not UTF-8: invalid start byte at byte 2$", id="not UTF-8"),
        pytest.param(
            gzip.compress(b"line\n" * 1000 + "fé".encode() + b"\xe9t\xe9\n"),
            "invalid continuation byte at byte 5,003$",
            id="not UTF-8, late in a packed file",
        ),
        pytest.param(b"x" * 399 + b"\xf0\x9f\x90" + b"x" * 400, "at byte 399$", id="a character cut by a document"),
        pytest.param(b"line\n\xf0\x9f\x90", "unexpected end of data at byte 5$", id="half a character at the end"),
        pytest.param(gzip.compress(b"line\n" * 99)[:-9], "is damaged: Compressed file ended", id="gzip cut short"),
        pytest.param(b"\x1f\x8b nonsense", "is damaged", id="gzip of nonsense"),
        pytest.param(b"PAR1 nonsense", "is damaged", id="Parquet of nonsense"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        documents(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "column", "message"),
    [
        pytest.param(["a"], "body", "has no column 'body', its columns are text, number", id="no such column"),
        pytest.param(["a"], "number", "column 'number' must hold strings, it holds int64", id="numbers"),
        pytest.param(pyarrow.array([], pyarrow.string()), "text", "is empty", id="no rows"),
        pytest.param(_not_utf8_in_parquet(), "text", "invalid start byte at byte 2 of row 1", id="not UTF-8"),
    ],
)
def test_a_parquet_file_without_the_texts_is_named(tmp_path: Path, texts: object, column: str, message: str) -> None:
    path = write_parquet(tmp_path / "rows.parquet", texts)
    with pytest.raises(CorpusError, match=message) as caught:
        documents(path, column=column)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("nothing", "cannot be read: No such file or directory", id="missing"),
        pytest.param("", "cannot be read: Is a directory", id="a folder"),
    ],
)
def test_what_is_no_file_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        documents(tmp_path / name)
