"""`ctm-ingest`: what goes where, that it is whole or not there, and what it says of a wrong call."""

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from small_corpus import grammar, small_corpus, write_text
from tokenizers import Tokenizer, models, pre_tokenizers

from ctm.language import ingest as ingest_module
from ctm.language.corpus import Corpus, Tokens, open_corpus
from ctm.language.documents import read_documents
from ctm.language.errors import CorpusError
from ctm.language.ingest import Ingestion, ingest, main
from ctm.language.shards import SplitWriter, dtype_for
from ctm.language.tokenizer import END_TOKEN, train_tokenizer

SPLITS = ("train", "held_out", "test")


def texts(corpus: Corpus, split: str) -> list[str]:
    """The documents of a split, from its tokens."""
    tokens: Tokens = getattr(corpus, split)
    numbers = tokens.take(np.arange(len(tokens)))
    ends = np.flatnonzero(numbers == corpus.end_token)
    assert ends[-1] == len(tokens) - 1, "the end token stands after every document, the last included"
    return [
        corpus.tokenizer.decode(document[document != corpus.end_token].tolist())
        for document in np.split(numbers, ends[:-1] + 1)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("corpora") / "small")


def test_every_document_goes_to_one_split_and_comes_back_as_it_was(folder: Path) -> None:
    corpus = open_corpus(folder)
    ingested = [text for split in SPLITS for text in texts(corpus, split)]
    # The sentences are numbered: no two documents are equal.
    assert sorted(ingested) == sorted(read_documents(folder.parent / "small.txt", "text", 200))
    for split in SPLITS:
        held = corpus.description.splits[split]
        assert held.documents == len(texts(corpus, split))
        assert held.bytes == sum(len(text.encode()) for text in texts(corpus, split))


def test_the_tokenizer_is_trained_on_the_training_documents_alone(folder: Path) -> None:
    corpus = open_corpus(folder)
    assert corpus.tokenizer.to_str() == train_tokenizer(texts(corpus, "train"), 300).to_str()


def test_shares_hold_and_a_seed_shares_out_in_its_own_way() -> None:
    def splits(seed: int, **shares: float) -> list[str]:
        ingestion = Ingestion(files=(Path("text"),), output=Path("corpus"), seed=seed, **shares)  # type: ignore[arg-type]  # shares only
        return [ingestion.split_of(number) for number in range(5000)]

    counted = splits(0, held_out=0.1, test=0.2)
    assert counted.count("held_out") == pytest.approx(500, rel=0.1)
    assert counted.count("test") == pytest.approx(1000, rel=0.1)
    assert counted == splits(0, held_out=0.1, test=0.2)
    assert counted != splits(1, held_out=0.1, test=0.2)
    first, second = splits(0, held_out=0.1, test=0.1), splits(0, held_out=0.4, test=0.1)
    moved = {pair for pair in zip(first, second, strict=True) if len(set(pair)) > 1}
    assert moved == {("train", "held_out")}, "a larger share takes from training and leaves the test as it was"


def test_the_same_call_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = small_corpus(tmp_path / "small")
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in again.iterdir())
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_corpus_json_says_where_it_comes_from(folder: Path) -> None:
    said = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    source = folder.parent / "small.txt"
    assert said["sources"] == [
        {
            "name": "small.txt",
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "documents": sum(split["documents"] for split in said["splits"].values()),
        }
    ]
    assert said["tokenizer_sha256"] == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert (said["format"], said["vocabulary"], said["end_token"], said["dtype"]) == (1, 300, 0, "uint16")
    assert said["command"] == "ctm-ingest ..."


@pytest.mark.parametrize("shard_tokens", [7, 1000])
def test_files_are_of_equal_length_and_make_the_same_sequence(tmp_path: Path, shard_tokens: int) -> None:
    text = grammar(sentences=40)
    whole = open_corpus(small_corpus(tmp_path / "whole", text, document_bytes=50))
    cut = open_corpus(small_corpus(tmp_path / "cut", text, document_bytes=50, shard_tokens=shard_tokens))
    for split in SPLITS:
        *full, last = cut.description.splits[split].shards
        assert all(tokens == shard_tokens for tokens in full)
        assert 0 < last <= shard_tokens
        assert texts(cut, split) == texts(whole, split)


def test_text_and_parquet_files_make_one_corpus(tmp_path: Path) -> None:
    rows = grammar(seed=5).splitlines()
    pyarrow.parquet.write_table(pyarrow.table({"body": rows}), tmp_path / "rows.parquet")
    files = (write_text(tmp_path / "text", grammar(seed=6)), tmp_path / "rows.parquet")
    description = ingest(Ingestion(files=files, output=tmp_path / "corpus", vocabulary=300, column="body"))
    assert [source.name for source in description.sources] == ["text", "rows.parquet"]
    assert description.sources[1].documents == len(rows)
    corpus = open_corpus(tmp_path / "corpus")
    assert set(rows) <= {text for split in SPLITS for text in texts(corpus, split)}


def test_a_given_tokenizer_is_kept_as_it_is_and_its_end_token_used(tmp_path: Path) -> None:
    own = train_tokenizer([grammar(seed=9)], 280)
    content = json.loads(own.to_str())
    # As GPT-2 has it: the end token last.
    vocabulary = {text: number - 1 for text, number in content["model"]["vocab"].items() if text != END_TOKEN}
    content["model"]["vocab"] = {**vocabulary, END_TOKEN: 279}
    content["added_tokens"][0]["id"] = 279
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    corpus = open_corpus(small_corpus(tmp_path / "corpus", vocabulary=None, tokenizer=str(tmp_path)))
    assert (corpus.vocabulary, corpus.end_token) == (280, 279)
    assert corpus.token_bytes[279] == 0
    assert all(texts(corpus, split) for split in SPLITS)


def test_an_end_token_in_the_text_is_text(tmp_path: Path) -> None:
    text = "".join(f"{number} {END_TOKEN} in a line\n" for number in range(200))
    corpus = open_corpus(small_corpus(tmp_path / "corpus", text))
    assert sum(len(texts(corpus, split)) for split in SPLITS) == corpus.description.sources[0].documents
    assert END_TOKEN in texts(corpus, "train")[0]


@pytest.mark.parametrize(
    ("vocabulary", "dtype"),
    [
        pytest.param(257, "uint16", id="few tokens"),
        pytest.param(65_536, "uint16", id="the last that two bytes number"),
        pytest.param(65_537, "uint32", id="one more"),
    ],
)
def test_the_width_of_a_token(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    assert dtype_for(vocabulary).name == dtype
    writer = SplitWriter(tmp_path, "train", 100, dtype_for(vocabulary), 0, np.ones(vocabulary, dtype=np.int64))
    writer.add("a", [vocabulary - 1])
    assert writer.close().tokens == 2
    shard = np.load(tmp_path / "train-00000.npy", allow_pickle=False)
    assert (shard.dtype.name, shard.tolist()) == (dtype, [vocabulary - 1, 0])


def test_a_tokenizer_that_adds_to_the_text_is_refused(tmp_path: Path) -> None:
    spacing = Tokenizer(models.BPE.from_file(*old_files(tmp_path)))
    spacing.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    spacing.add_special_tokens([END_TOKEN])
    spacing.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CorpusError, match=r"does not keep text as it is: a document of \d+ bytes, .* '0 .*\d+ bytes"):
        small_corpus(tmp_path / "corpus", vocabulary=None, tokenizer=str(tmp_path / "tokenizer.json"))


def old_files(folder: Path) -> tuple[str, str]:
    trained = train_tokenizer([grammar()], 280)
    vocabulary, merges = trained.model.save(str(folder))
    return vocabulary, merges


class Stop(BaseException):
    """Something that nobody expects."""


@pytest.mark.parametrize("error", [CorpusError("no"), OSError("disk full"), KeyboardInterrupt(), Stop()], ids=repr)
def test_a_broken_off_ingestion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = write_text(tmp_path / "text", grammar())
    seen: list[list[str]] = []

    def documents(*arguments: Any) -> Iterator[str]:
        whole = list(read_documents(*arguments))
        yield from whole[:-1]
        seen.append(sorted(entry.name for entry in tmp_path.iterdir()))
        if len(seen) > 1:
            raise error
        yield whole[-1]

    monkeypatch.setattr(ingest_module, "read_documents", documents)
    with pytest.raises(type(error)):
        ingest(Ingestion(files=(path,), output=tmp_path / "corpus", vocabulary=300))
    assert seen[-1] == [f".aside-corpus-{os.getpid()}", "text"], "until it is whole, it stands aside"
    assert [entry.name for entry in tmp_path.iterdir()] == ["text"]


def test_the_command_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = write_text(tmp_path / "text", grammar()), tmp_path / "new" / "corpus"
    arguments = [str(path), "--output", str(output), "--vocabulary", "300", "--document-bytes", "200"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "a vocabulary of 300 tokens, 1 file(s)" in printed
    for split in SPLITS:
        assert f"\n  {split:<9}" in printed
    assert open_corpus(output).description.command == "ctm-ingest " + " ".join(arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param([], "no files to read", id="no files"),
        pytest.param(["empty"], "empty is empty", id="an empty file"),
        pytest.param(["missing"], "missing cannot be read: No such file", id="a missing file"),
        pytest.param(["latin"], "latin is not UTF-8: invalid continuation byte at byte 3", id="not UTF-8"),
        pytest.param(["text", "--vocabulary", "256"], "--vocabulary must be at least 257, .* got 256", id="too few"),
        pytest.param(["text", "--vocabulary", "300", "--tokenizer", "x"], "either --vocabulary or --tok", id="both"),
        pytest.param(["text", "--tokenizer", "x.json"], "there is no file x.json", id="no tokenizer"),
        pytest.param(["text", "--held-out", "0"], r"--held-out must lie in \(0, 1\), got 0.0", id="nothing held out"),
        pytest.param(["text", "--test", "1"], r"--test must lie in \(0, 1\), got 1.0", id="all for the test"),
        pytest.param(["text", "--test", "nan"], r"--test must lie in \(0, 1\), got nan", id="a share that is none"),
        pytest.param(["text", "--test", "0.5", "--held-out", "0.5"], "leave a share to train on, got 1.0", id="none"),
        pytest.param(["text", "--document-bytes", "0"], "--document-bytes must be at least 1, got 0", id="documents"),
        pytest.param(["text", "--shard-tokens", "0"], "--shard-tokens must be at least 1, got 0", id="shards"),
        pytest.param(["text"], "none of 2 documents fell to (held_out|test)", id="too little text to share out"),
        pytest.param(
            ["text", "copy", "--document-bytes", "200"], "copy holds what text holds: its documents would", id="a copy"
        ),
        pytest.param(["text", "--output", "here"], "here is there already; --output names a new folder", id="a folder"),
        pytest.param(["text", "--output", "text/corpus"], "(File exists|Not a directory): '.*text'", id="in a file"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_exit_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("empty").write_bytes(b"")
    Path("latin").write_bytes("café au lait".encode("latin-1"))
    write_text(Path("text"), grammar())
    write_text(Path("copy"), grammar())
    before = sorted(Path().rglob("*"))
    assert main([*options, *(() if "--output" in options else ("--output", "corpus"))]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ctm-ingest: error: ")
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err), printed.err
    assert sorted(Path().rglob("*")) == before, "nothing was made"


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        pytest.param(signal.SIGTERM, 143, "terminated", id="SIGTERM"),
        pytest.param(signal.SIGINT, 130, "interrupted", id="Ctrl-C"),
    ],
)
def test_being_told_to_stop_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
    message: str,
) -> None:
    path = write_text(tmp_path / "text", grammar())

    def documents(*arguments: Any) -> Iterator[str]:
        signal.raise_signal(number)
        yield from read_documents(*arguments)

    monkeypatch.setattr(ingest_module, "read_documents", documents)
    before = signal.getsignal(signal.SIGTERM)
    assert main([str(path), "--output", str(tmp_path / "corpus")]) == status
    assert capsys.readouterr().err == f"ctm-ingest: {message}; nothing was made\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["text"]
    assert signal.getsignal(signal.SIGTERM) is before
