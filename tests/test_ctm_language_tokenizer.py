"""Byte-level BPE, trained and found, and the bytes of its tokens."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import grammar
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from ctm.language import tokenizer as tokenizers_module
from ctm.language.errors import CorpusError
from ctm.language.tokenizer import END_TOKEN, find_tokenizer, read_tokenizer, token_bytes, train_tokenizer

TRAINED = train_tokenizer([grammar()], 300)


def test_the_end_token_is_the_first_of_as_many_tokens_as_were_asked_for() -> None:
    assert TRAINED.get_vocab_size() == 300
    assert TRAINED.token_to_id(END_TOKEN) == 0


def test_a_text_without_more_pairs_makes_a_smaller_vocabulary() -> None:
    assert train_tokenizer(["ab"], 300).get_vocab_size() == 258


def test_training_depends_on_the_texts_alone() -> None:
    assert train_tokenizer([grammar()], 300).to_str() == TRAINED.to_str()
    assert train_tokenizer([grammar(seed=1)], 300).to_str() != TRAINED.to_str()


@given(text=st.text())
def test_any_text_becomes_tokens_that_stand_for_its_bytes_and_comes_back(text: str) -> None:
    encoded = TRAINED.encode(text).ids
    if END_TOKEN not in text:
        assert token_bytes(TRAINED)[encoded].sum() == len(text.encode())
    assert TRAINED.decode(encoded, skip_special_tokens=False) == text


def test_a_token_stands_for_the_bytes_it_was_made_of() -> None:
    sizes = token_bytes(TRAINED)
    assert sizes.dtype == np.int64
    assert sizes[0] == 0, "the end token is no text"
    assert sizes[TRAINED.token_to_id("é".encode().decode("latin-1")[0])] == 1
    assert sizes[TRAINED.encode(" cat").ids[0]] == len(TRAINED.id_to_token(TRAINED.encode(" cat").ids[0]))


def test_an_end_token_that_is_not_special_is_no_text_either() -> None:
    content = json.loads(TRAINED.to_str())
    content["added_tokens"] = []
    plain = Tokenizer.from_str(json.dumps(content))
    np.testing.assert_array_equal(token_bytes(plain), token_bytes(TRAINED))


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(CorpusError, match="must be at least 257, the bytes and the end token, got 256"):
        train_tokenizer(["text"], 256)


def old_format(folder: Path) -> Path:
    """The trained tokenizer as vocab.json and merges.txt, as GPT-2 was first published, its end token last."""
    folder.mkdir(exist_ok=True)
    model = json.loads(TRAINED.to_str())["model"]
    # GPT-2 numbers its end token after all others.
    vocabulary = {text: number - 1 for text, number in model["vocab"].items() if text != END_TOKEN}
    vocabulary[END_TOKEN] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    return folder


def test_a_tokenizer_is_found_as_a_file_in_a_folder_and_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TRAINED.save(str(tmp_path / "tokenizer.json"))
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(tmp_path / name)

    monkeypatch.setattr(tokenizers_module, "hf_hub_download", download)
    for source in (str(tmp_path / "tokenizer.json"), str(tmp_path), "someone/something"):
        assert find_tokenizer(source).to_str() == TRAINED.to_str(), source
    assert asked == [("someone/something", "tokenizer.json")]


def test_the_older_format_of_gpt2_makes_the_same_tokens(tmp_path: Path) -> None:
    older = find_tokenizer(str(old_format(tmp_path)))
    assert older.token_to_id(END_TOKEN) == 299
    text = grammar(seed=2)
    assert [number + 1 for number in older.encode(text).ids] == TRAINED.encode(text).ids
    np.testing.assert_array_equal(np.roll(token_bytes(older), 1), token_bytes(TRAINED))


def test_a_tokenizer_that_cuts_and_pads_does_so_no_longer(tmp_path: Path) -> None:
    clipping = Tokenizer.from_str(TRAINED.to_str())
    clipping.enable_truncation(3)
    clipping.enable_padding(length=5)
    clipping.save(str(tmp_path / "tokenizer.json"))
    found = find_tokenizer(str(tmp_path))
    assert found.encode("a").ids == TRAINED.encode("a").ids
    assert found.encode(grammar()).ids == TRAINED.encode(grammar()).ids


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, END_TOKEN: 1}, unk_token=END_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def lower_case() -> Tokenizer:
    tokenizer = Tokenizer.from_str(TRAINED.to_str())
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def without_end() -> Tokenizer:
    return Tokenizer.from_str(TRAINED.to_str().replace(END_TOKEN, "</s>"))


def with_a_gap() -> Tokenizer:
    content = json.loads(TRAINED.to_str())
    content["model"]["vocab"]["gap"] = 1000
    return Tokenizer.from_str(json.dumps(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("{}", "is no tokenizer", id="JSON of something else"),
        pytest.param("\x00\x01", "is no tokenizer", id="no JSON"),
        pytest.param(words().to_str(), "no byte-level BPE: it has no token for 255 of the 256 bytes", id="words"),
        pytest.param(lower_case().to_str(), "its normalizer must be null", id="changes the text"),
        pytest.param(without_end().to_str(), r"has no token <\|endoftext\|>", id="no end token"),
        pytest.param(with_a_gap().to_str(), "numbers 301 tokens up to 1000", id="numbers with a gap"),
    ],
)
def test_what_is_no_byte_level_tokenizer_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=message) as caught:
        find_tokenizer(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"lacks tokenizer.json, and lacks vocab.json and merges.txt"):
        find_tokenizer(str(tmp_path))
    (old_format(tmp_path) / "merges.txt").write_text("one two three four\n")
    with pytest.raises(CorpusError, match=r"vocab.json and merges.txt are no tokenizer"):
        find_tokenizer(str(tmp_path))


def test_a_missing_file_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"there is no file .*tokenizer.json"):
        find_tokenizer(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    "source", [pytest.param("gpt2", id="a repository"), pytest.param("no such / name", id="what cannot be one")]
)
def test_a_repository_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CorpusError, match="is neither a file, nor a folder, nor a repository") as caught:
        find_tokenizer(source)
    assert str(caught.value).startswith(source)
    assert "\n" not in str(caught.value)


def test_another_tokenizer_than_the_expected_one_is_refused(tmp_path: Path) -> None:
    TRAINED.save(str(tmp_path / "one.json"))
    shutil.copy(tmp_path / "one.json", tmp_path / "two.json")
    (tmp_path / "two.json").write_bytes((tmp_path / "one.json").read_bytes() + b"\n")
    with pytest.raises(CorpusError, match=r"two.json has the sha256 [0-9a-f]{64}, expected 0{64}"):
        read_tokenizer(tmp_path / "two.json", "0" * 64)
