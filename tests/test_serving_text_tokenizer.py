"""A bundle's tokenizer: what it must be, what its tokens stand for, and what they read as while they come."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripted_text import END, VOCABULARY, library_tokenizer, tokenizer_file, tokens_of
from tokenizers import AddedToken, Tokenizer, decoders, models

from serving.errors import BackendFailed
from serving.mismatch import Mismatch
from serving.text.reader import Reader
from serving.text.tokenizer import Tokenizer as OurTokenizer

OURS, LIBRARY = OurTokenizer(tokenizer_file()), library_tokenizer()
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=40)


def test_it_cuts_a_text_as_the_library_does():
    for text in ("In the beginning", " and the earth.\n", "Æ, 日本語 and 😀"):
        assert OURS.encode(text) == LIBRARY.encode(text).ids
        assert b"".join(OURS.pieces[token] for token in OURS.encode(text)) == text.encode()
    assert OURS.size == VOCABULARY


def test_a_prompt_is_never_cut_short_nor_padded():
    file = library_tokenizer()
    file.enable_truncation(2)
    file.enable_padding(length=50)
    assert OurTokenizer(file.to_str().encode()).encode("In the beginning") == OURS.encode("In the beginning")


def test_a_special_token_may_be_written_in_a_prompt_and_is_never_read_out():
    assert OURS.encode("<|endoftext|>In") == [END, *tokens_of("In")]
    assert OURS.pieces[END] == b""


def test_labels_say_what_a_token_stands_for():
    labels = OURS.labels()
    assert labels[0] == "<|endoftext|>"
    assert labels[tokens_of("In")[0]] == "In"
    assert labels[tokens_of(b"\xe2")[0]] == "\\xe2"
    assert len(labels) == len(set(labels)) == VOCABULARY


def test_a_prompt_is_cut_the_same_way_each_time():
    cut = OurTokenizer(with_model(dropout=0.5)).encode
    assert {tuple(cut("In the beginning")) for _ in range(20)} == {tuple(OURS.encode("In the beginning"))}


def test_what_the_library_cannot_cut_fails_the_request_alone():
    backtracking = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}
    tokenizer = OurTokenizer(changed(pre_tokenizer=backtracking))
    with pytest.raises(BackendFailed, match="the tokenizer failed"):
        tokenizer.encode("a" * 30)
    assert tokenizer.encode("a")


def changed(**changes: object) -> bytes:
    return json.dumps({**json.loads(tokenizer_file()), **changes}).encode()


def with_model(**changes: object) -> bytes:
    return changed(model={**json.loads(tokenizer_file())["model"], **changes})


def with_a_gap() -> bytes:
    document = json.loads(tokenizer_file())
    document["model"]["vocab"]["far away"] = VOCABULARY + 5
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"", "expected a file of the tokenizers library", id="empty"),
        pytest.param(b"\xff\xfe", "expected a file of the tokenizers library", id="no text"),
        pytest.param(tokenizer_file()[:-20], "expected a file of the tokenizers library", id="cut short"),
        pytest.param(b"{}", "expected a file of the tokenizers library", id="an empty document"),
        pytest.param(changed(decoder=None), "decoder: got 'None', expected ByteLevel", id="no decoder"),
        pytest.param(
            changed(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
            "expected ByteLevel",
            id="another decoder",
        ),
        pytest.param(
            with_model(unk_id=None, vocab=[["a", 0.0]], type="Unigram"), "can cut every text", id="knows an a"
        ),
        pytest.param(
            with_model(continuing_subword_prefix="longer than a token"),
            "expected a file of the tokenizers library",
            id="the library panics at it",
        ),
        pytest.param(
            changed(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
            "can cut every text",
            id="the library panics at a text",
        ),
        pytest.param(with_a_gap(), f"got none of number {VOCABULARY}, expected a token for every", id="a gap"),
    ],
)
def test_what_is_refused(data, said):
    with pytest.raises(Mismatch) as refused:
        OurTokenizer(data)
    assert said in str(refused.value)


@settings(deadline=None, derandomize=True)
@given(TOKENS)
@example(tokens_of("日本語 😀".encode()))
@example(tokens_of("😀".encode()[:3]))
@example(tokens_of("😀".encode()[:3] + b"a"))
@example(tokens_of(b"\xff\xe2\x82\xf0\x9f\x98"))
def test_token_by_token_reads_as_the_whole_does(tokens):
    reader = Reader()
    parts = [reader.feed(OURS.pieces[token]) for token in tokens]
    parts.append(reader.finish())
    assert "".join(parts) == reader.text == LIBRARY.decode(tokens)


def test_added_tokens_read_as_the_library_reads_them():
    library = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    library.decoder = decoders.ByteLevel()
    library.add_tokens([AddedToken("plain"), AddedToken("with space"), AddedToken("日本")])
    ours = OurTokenizer(library.to_str().encode())
    assert b"".join(ours.pieces).decode() == library.decode([0, 1, 2, 3])


@settings(deadline=None, derandomize=True)
@given(TOKENS)
def test_only_whole_characters_are_given_out(tokens):
    reader, fed = Reader(), b""
    for token in tokens:
        fed += OURS.pieces[token]
        reader.feed(OURS.pieces[token])
        assert fed.decode(errors="replace").startswith(reader.text)
        assert len(fed) - len(reader.text.encode()) < 4 or "\ufffd" in reader.text


@pytest.mark.parametrize(
    ("stops", "pieces", "given_out", "stopped"),
    [
        pytest.param([], [b"a", b"b"], ["a", "b", ""], False, id="no stop texts"),
        pytest.param(["."], [b"a.b"], ["a", ""], True, id="inside a token"),
        pytest.param(["."], [b"a", b".", b"b"], ["a", "", "", ""], True, id="nothing follows"),
        pytest.param(["ab"], [b"xa", b"by"], ["x", "", ""], True, id="across tokens"),
        pytest.param(["ab"], [b"xa", b"cy"], ["x", "acy", ""], False, id="held back, then given out"),
        pytest.param(["ab"], [b"xa"], ["x", "a"], False, id="held back to the end"),
        pytest.param(["aab"], [b"a", b"a", b"a", b"b"], ["", "", "a", "", ""], True, id="begins inside itself"),
        pytest.param(["abcd", "bc"], [b"ab", b"c"], ["", "a", ""], True, id="the first to be complete"),
        pytest.param(["c", "abc"], [b"ab", b"c"], ["", "", ""], True, id="the longest of those that end together"),
        pytest.param(["é"], ["xé".encode()[:2], "é".encode()[1:]], ["x", "", ""], True, id="half a character"),
        pytest.param(["\n\n"], [b"a\n", b"\n"], ["a", "", ""], True, id="two lines"),
        pytest.param(["\ufffd"], [b"a\xf0\x9f"], ["a", ""], True, id="what half a character reads as"),
    ],
)
def test_what_is_given_out_and_where_it_stops(stops, pieces, given_out, stopped):
    reader = Reader(stops)
    assert [reader.feed(piece) for piece in pieces] + [reader.finish()] == given_out
    assert reader.stopped is stopped


def read_at_once(text: str, stops: list[str]) -> str:
    """The text up to the stop text that is complete first, the longest of those."""
    for end in range(len(text) + 1):
        if ended := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, ended))]
    return text


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.text("ab\né", max_size=4), max_size=8),
    st.lists(st.text("ab\né", min_size=1, max_size=4), max_size=4),
    st.integers(0, 2**16),
)
def test_stop_texts_are_found_however_the_text_is_cut(parts, stops, seed):
    text = "".join(parts)
    data, reader = text.encode(), Reader(stops)
    cuts = sorted(np.random.default_rng(seed).integers(0, len(data) + 1, 4).tolist())
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        reader.feed(data[begin:end])
        assert read_at_once(text, stops).startswith(reader.text)
    reader.finish()
    assert reader.text == read_at_once(text, stops)
