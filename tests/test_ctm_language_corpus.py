"""Reading a corpus: positions across files, and what is missing or does not fit said by name."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import small_corpus

from ctm.language.corpus import Tokens, open_corpus
from ctm.language.errors import CorpusError
from ctm.language.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_corpus(tmp_path_factory.mktemp("corpora") / "whole", shard_tokens=500)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), data=st.data())
def test_positions_are_read_across_files(sizes: list[int], data: st.DataObject) -> None:
    sequence = np.arange(100, 100 + sum(sizes), dtype=np.uint16)
    tokens = Tokens(np.split(sequence, np.cumsum(sizes)[:-1]))
    assert len(tokens) == len(sequence)
    places = st.lists(st.integers(0, len(sequence) - 1), min_size=6, max_size=6)
    positions = np.array(data.draw(places)).reshape(2, 3)
    taken = tokens.take(positions)
    assert taken.dtype == np.int64
    np.testing.assert_array_equal(taken, sequence[positions])


def test_an_open_corpus_knows_its_tokens(whole: Path) -> None:
    corpus = open_corpus(whole)
    assert (corpus.vocabulary, corpus.end_token) == (300, 0)
    assert corpus.token_bytes.shape == (300,)
    for split in ("train", "held_out", "test"):
        tokens, held = getattr(corpus, split), corpus.description.splits[split]
        assert len(tokens) == held.tokens
        assert len(held.shards) > 1, "the tests below read across files"
        numbers = tokens.take(np.arange(len(tokens)))
        assert corpus.token_bytes[numbers].sum() == held.bytes
        assert (numbers == corpus.end_token).sum() == held.documents


Damage = Callable[[Path], object]


def described(**changes: Any) -> Damage:
    """Says something else in corpus.json; keys lead into tables by `__`."""

    def damage(folder: Path) -> None:
        said = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        for path, value in changes.items():
            *tables, key = path.split("__")
            table = said
            for name in tables:
                table = table[name]
            table[key] = value
        (folder / "corpus.json").write_text(json.dumps(said), encoding="utf-8")

    return damage


def saved(name: str, tokens: np.ndarray[Any, Any]) -> Damage:
    return lambda folder: np.save(folder / name, tokens, allow_pickle=tokens.dtype == object)


def retrained(folder: Path) -> None:
    """A tokenizer of another size, its hash told."""
    train_tokenizer(["other text"], 280).save(str(folder / "tokenizer.json"))
    described(tokenizer_sha256=hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest())(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(shutil.rmtree, "is no corpus: it lacks corpus.json; ctm-ingest makes one", id="no folder"),
        pytest.param(lambda folder: (folder / "corpus.json").unlink(), "it lacks corpus.json", id="no description"),
        pytest.param(
            lambda folder: (folder / "corpus.json").write_text("{"),
            r"corpus.json cannot be read",
            id="half a description",
        ),
        pytest.param(
            lambda folder: (folder / "corpus.json").write_text("[]"), "has format None", id="another description"
        ),
        pytest.param(described(format=2), "has format 2, this version reads format 1", id="a later version"),
        pytest.param(described(vocabulary="many"), "corpus.json: vocabulary: .*got 'many'", id="no number"),
        pytest.param(described(splits={}), "lacks the splits train, held_out, test", id="no splits"),
        pytest.param(described(splits__test__tokens=7), "test has 7 tokens, its shards", id="tokens and shards"),
        pytest.param(described(splits__test__shards=[]), r"test has \d+ tokens, its shards 0", id="no shards"),
        pytest.param(described(dtype="object"), "dtype must be uint16 or uint32, got 'object'", id="pickled tokens"),
        pytest.param(described(end_token=300), r"end_token must lie in \[0, 300\), got 300", id="no such end token"),
        pytest.param(
            lambda folder: (folder / "tokenizer.json").unlink(),
            "tokenizer.json cannot be read: No such file",
            id="no tokenizer",
        ),
        pytest.param(
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            r"tokenizer.json has the sha256 [0-9a-f]{64}, expected [0-9a-f]{64}",
            id="another tokenizer",
        ),
        pytest.param(
            retrained, r"tokenizer.json has \d+ tokens, .* says a vocabulary of 300", id="a smaller tokenizer"
        ),
        pytest.param(
            lambda folder: (folder / "train-00001.npy").unlink(), "train-00001.npy cannot be read", id="a file missing"
        ),
        pytest.param(
            lambda folder: (folder / "train-00001.npy").write_bytes((folder / "train-00001.npy").read_bytes()[:-2]),
            "train-00001.npy cannot be read",
            id="a file cut short",
        ),
        pytest.param(
            lambda folder: (folder / "test-00000.npy").write_bytes(b""), "test-00000.npy cannot be read", id="empty"
        ),
        pytest.param(
            saved("train-00000.npy", np.zeros(499, dtype=np.uint16)),
            r"train-00000.npy holds uint16 \[499\], corpus.json says uint16 \[500\]",
            id="too few tokens",
        ),
        pytest.param(
            saved("train-00000.npy", np.zeros(500, dtype=np.uint32)),
            r"train-00000.npy holds uint32 \[500\], corpus.json says uint16 \[500\]",
            id="wider tokens",
        ),
        pytest.param(
            saved("train-00000.npy", np.array([{}] * 500, dtype=object)),
            "train-00000.npy cannot be read",
            id="a pickle",
        ),
    ],
)
def test_a_damaged_corpus_is_refused_by_name(whole: Path, tmp_path: Path, damage: Damage, message: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(CorpusError, match=message) as caught:
        open_corpus(folder)
    assert str(caught.value).startswith(str(folder))
