"""What a caller may ask of a model of text, what is refused and how it is said."""

from contextlib import suppress
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_text import BUNDLE, VOCABULARY, WINDOW, library_tokenizer, tokens_of
from test_serving_text_chain import finished

from protos import ctm_serving_pb2 as pb
from serving.errors import InvalidRequest
from serving.request import Request
from serving.tensors import tensor_message, text_message
from serving.text.options import TextOptions, text_options
from serving.text.sampling import Sampling
from serving.wire import parse_request

MAX_ROWS, MAX_LINKS = 4, 64
LONG = " ".join(["beginning"] * 10)


def parse(**fields: object) -> Request:
    message = pb.ThinkRequest(**{"inputs": text("In the beginning"), **fields})
    again = pb.ThinkRequest.FromString(message.SerializeToString())
    return parse_request(again, BUNDLE, max_rows=MAX_ROWS, max_links=MAX_LINKS, arrival=0.0, call_deadline=inf)


def text(*rows: str | bytes) -> list[pb.Tensor]:
    return [text_message("text", rows)]


def tokens(*rows: list[int], **length: object) -> list[pb.Tensor]:
    made = [tensor_message("tokens", np.array(rows, np.int64))]
    return made + [tensor_message("length", np.asarray(values)) for values in length.values()]


def broken(**changes: object) -> list[pb.Tensor]:
    """A prompt whose tensor was tampered with."""
    (tensor,) = text("In", "the")
    for field, value in changes.items():
        tensor.ClearField(field)
        getattr(tensor, field).extend(value) if isinstance(value, list) else setattr(tensor, field, value)
    return [tensor]


def chain(max_links: int | None = None, **options: pb.Value) -> dict[str, object]:
    return {"chain": pb.ChainPolicy(max_links=max_links, options=options)}


def number(value: float) -> pb.Value:
    return pb.Value(number=value)


def stops(*values: str) -> pb.Value:
    return pb.Value(texts=pb.TextList(values=values))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        # Inputs.
        pytest.param({"inputs": []}, "inputs: got none, expected text, or tokens with or without length", id="nothing"),
        pytest.param({"inputs": text("a") + tokens([1])}, "inputs: got text, tokens, expected text, or", id="both"),
        pytest.param({"inputs": text("a") + tokens([1], length=[1])[1:]}, "got text, length", id="a text's length"),
        pytest.param({"inputs": tokens([1], length=[1])[1:]}, "inputs: got length, expected", id="a length alone"),
        pytest.param({"inputs": [tensor_message("prompt", np.zeros(1))]}, "got 'prompt', expected text", id="unknown"),
        pytest.param(
            {"stream": pb.StreamPolicy(top_k=257)},
            "stream.top_k: got 257, expected at most 256; stream.predictions has all of them",
            id="much of a vocabulary at each tick",
        ),
        pytest.param({"inputs": text("a") * 2}, "got 'text' twice, expected each input once", id="twice"),
        # Texts.
        pytest.param(
            {"inputs": text("a", "")}, "input 'text', row 1: got an empty text, expected at least one", id="empty"
        ),
        pytest.param(
            {"inputs": text("fine", LONG)},
            f"input 'text', row 1: got {len(tokens_of(LONG))} tokens, expected at most {WINDOW}, as many",
            id="more tokens than the window",
        ),
        pytest.param(
            {"inputs": text("a" * 1025)},
            "row 0: got 1025 bytes, expected at most 1024, 64 for each of the 16",
            id="long",
        ),
        pytest.param(
            {"inputs": text(b"ab\xffc")}, "input 'text', row 0, byte 2: got 0xff, expected UTF-8", id="not UTF-8"
        ),
        pytest.param({"inputs": text(b"ab\xe2\x82")}, "byte 2: got 0xe2, expected UTF-8", id="half a character"),
        pytest.param({"inputs": text(b"\xed\xa0\x80")}, "byte 0: got 0xed, expected UTF-8", id="a surrogate"),
        pytest.param({"inputs": text()}, "input 'text', rows: got 0, expected 1 to 4", id="no rows"),
        pytest.param({"inputs": text(*"abcde")}, "input 'text', rows: got 5, expected 1 to 4", id="many rows"),
        pytest.param(
            {"inputs": [tensor_message("text", np.zeros(1, np.uint8))]},
            "input 'text', datatype: got 'UINT8', expected BYTES",
            id="bytes of another kind",
        ),
        pytest.param({"inputs": broken(shape=[2, 1])}, "shape: got [2, 1], expected [rows]", id="two dimensions"),
        pytest.param({"inputs": broken(shape=[])}, "shape: got [], expected [rows]", id="no dimensions"),
        pytest.param({"inputs": broken(shape=[-1])}, "rows: got -1", id="negative rows"),
        pytest.param({"inputs": broken(shape=[3])}, "got 2 texts in 13 of 13 bytes, expected 3 texts", id="too few"),
        pytest.param({"inputs": broken(shape=[1])}, "got 1 texts in 6 of 13 bytes, expected 1 texts in", id="too many"),
        pytest.param({"inputs": broken(data=b"")}, "got 0 texts in 0 of 0 bytes, expected 2", id="no bytes"),
        pytest.param(
            {"inputs": broken(data=b"\xff\xff\xff\xffab")},
            "text 0: got an end at byte 4294967299, expected at most 6",
            id="a length beyond the end",
        ),
        pytest.param(
            {"inputs": broken(data=b"\x01\x00")}, "text 0: got an end at byte 5, expected", id="half a length"
        ),
        # Tokens.
        pytest.param(
            {"inputs": tokens([1, VOCABULARY])},
            "input 'tokens', at [0, 1]: got 300, expected 0 to 299, the model's vocabulary",
            id="beyond the vocabulary",
        ),
        pytest.param({"inputs": tokens([1], [-1])}, "at [1, 0]: got -1, expected 0 to 299", id="below the vocabulary"),
        pytest.param(
            {"inputs": tokens([1] * (WINDOW + 1))},
            "input 'tokens': got 17 tokens a row, expected 1 to 16",
            id="more than the window",
        ),
        pytest.param({"inputs": tokens([], [])}, "got 0 tokens a row, expected 1 to 16", id="no tokens"),
        pytest.param({"inputs": tokens(*[[1]] * 5)}, "input 'tokens', rows: got 5, expected 1 to 4", id="token rows"),
        pytest.param(
            {"inputs": [tensor_message("tokens", np.zeros((1, 2), np.int32))]},
            "input 'tokens', datatype: got 'INT32', expected INT64",
            id="other integers",
        ),
        pytest.param(
            {"inputs": [tensor_message("tokens", np.zeros(2, np.int64))]},
            "shape: got [2], expected [rows, 1 to 16]",
            id="one dimension",
        ),
        pytest.param(
            {"inputs": tokens([1, 2], length=[0])}, "input 'length', row 0: got 0, expected 1 to 2", id="none"
        ),
        pytest.param({"inputs": tokens([1, 2], length=[3])}, "got 3, expected 1 to 2, the tokens given", id="too long"),
        pytest.param(
            {"inputs": tokens([1], length=[1, 1])}, "'length', shape: got [2], expected [1]", id="rows differ"
        ),
        pytest.param({"inputs": tokens([1], length=[1.0])}, "datatype: got 'FP64', expected INT64", id="length 1.0"),
        # The chain.
        pytest.param(chain(0), "chain.max_links: got 0, expected 1 to 64, this server's limit", id="no links"),
        pytest.param(chain(65), "chain.max_links: got 65, expected 1 to 64", id="more links than the limit"),
        pytest.param(
            chain(temprature=number(1)),
            "chain.options: got 'temprature', expected of temperature, top_k, top_p, stop",
            id="an option that there is not",
        ),
        pytest.param(chain(temperature=number(-0.1)), "chain.options, temperature: got -0.1", id="below zero"),
        pytest.param(chain(temperature=number(nan)), "temperature: got nan, expected a number", id="NaN"),
        pytest.param(chain(temperature=number(inf)), "temperature: got inf", id="infinitely hot"),
        pytest.param(
            chain(temperature=pb.Value(text="hot")),
            "temperature: got a text, expected a number or an integer",
            id="a word",
        ),
        pytest.param(chain(temperature=pb.Value()), "temperature: got nothing, expected a number", id="no value"),
        pytest.param(chain(temperature=pb.Value(flag=True)), "temperature: got a flag", id="a flag"),
        pytest.param(chain(top_k=number(3)), "top_k: got a number, expected an integer", id="k as a float"),
        pytest.param(chain(top_k=pb.Value(integer=-1)), "top_k: got -1, expected at least 0", id="k below zero"),
        pytest.param(chain(top_p=number(0)), "top_p: got 0.0, expected a share in (0, 1]", id="no share"),
        pytest.param(chain(top_p=number(1.01)), "top_p: got 1.01", id="more than all"),
        pytest.param(chain(top_p=number(nan)), "top_p: got nan", id="a share that is no number"),
        pytest.param(chain(stop=number(1)), "stop: got a number, expected a text or texts", id="stop at a number"),
        pytest.param(chain(stop=stops("a", "")), "got a text of 0 characters, expected 1 to 256", id="stop at nothing"),
        pytest.param(chain(stop=pb.Value(text="é" * 257)), "got a text of 257 characters", id="an endless stop text"),
        pytest.param(chain(stop=stops(*"a" * 17)), "stop: got 17 texts, expected at most 16", id="many stop texts"),
        # What holds for every model holds here.
        pytest.param({"stop": pb.StopPolicy(max_ticks=5)}, "stop.max_ticks: got 5, expected 1 to 4", id="tick cap"),
    ],
)
def test_what_is_refused(fields, said):
    with pytest.raises(InvalidRequest) as refused:
        parse(**fields)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 1000, "a status holds little"


def rows_of(asked: Request) -> list[list[int]]:
    lengths = asked.inputs["length"].tolist()
    assert asked.inputs["tokens"].shape == (len(lengths), WINDOW)
    for row, length in zip(asked.inputs["tokens"], lengths, strict=True):
        assert set(row[length:].tolist()) <= {BUNDLE.text.padding_token}
    return [row[:length].tolist() for row, length in zip(asked.inputs["tokens"], lengths, strict=True)]


@pytest.mark.parametrize(
    ("inputs", "rows"),
    [
        pytest.param(text("In the"), [tokens_of("In the")], id="a text"),
        pytest.param(text("In", "日本"), [tokens_of("In"), tokens_of("日本")], id="two texts"),
        pytest.param(text("a\0b"), [tokens_of(b"a\0b")], id="a zero byte"),
        pytest.param(tokens([1, 2], [3, 4]), [[1, 2], [3, 4]], id="tokens"),
        pytest.param(tokens(list(range(16))), [list(range(16))], id="a full window"),
        pytest.param(tokens([1, 2, 9], [3, 4, 5], length=[2, 3]), [[1, 2], [3, 4, 5]], id="tokens and lengths"),
    ],
)
def test_prompts_become_padded_tokens(inputs, rows):
    asked = parse(inputs=inputs)
    assert rows_of(asked) == rows
    assert (asked.rows, list(asked.inputs)) == (len(rows), ["tokens", "length"])
    assert all(values.dtype == np.int64 for values in asked.inputs.values())


@settings(deadline=None, derandomize=True)
@given(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=MAX_ROWS))
def test_any_short_text_can_be_sent(prompts):
    assert rows_of(parse(inputs=text(*prompts))) == [library_tokenizer().encode(prompt).ids for prompt in prompts]


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=40), st.integers(0, 4))
def test_no_bytes_make_it_fail_otherwise(data, rows):
    asked = None
    with suppress(InvalidRequest):
        asked = parse(inputs=[pb.Tensor(name="text", datatype="BYTES", shape=[rows], data=data)])
    assert asked is None or asked.rows == rows


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, TextOptions(), id="the defaults"),
        pytest.param(chain(64), TextOptions(max_links=64), id="as many links as allowed"),
        pytest.param(
            chain(temperature=number(0)), TextOptions(sampling=Sampling(temperature=0.0)), id="temperature as a number"
        ),
        pytest.param(
            chain(temperature=pb.Value(integer=2)), TextOptions(sampling=Sampling(temperature=2.0)), id="as an integer"
        ),
        pytest.param(
            chain(top_k=pb.Value(integer=2**62), top_p=pb.Value(integer=1)),
            TextOptions(sampling=Sampling(top_k=2**62)),
            id="more tokens than there are",
        ),
        pytest.param(chain(stop=pb.Value(text="\n")), TextOptions(stops=("\n",)), id="a stop text"),
        pytest.param(chain(stop=stops("a", "b")), TextOptions(stops=("a", "b")), id="stop texts"),
        pytest.param(chain(stop=stops()), TextOptions(), id="no stop texts"),
    ],
)
def test_what_a_caller_asks_of_the_chain(fields, expected):
    assert text_options(fields.get("chain", pb.ChainPolicy()), max_links=MAX_LINKS) == expected
    assert parse(**fields).chain is not None


def test_a_seed_is_drawn_for_those_who_give_none():
    seeds = {finished(parse().chain).seed for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert finished(parse(chain=pb.ChainPolicy(seed=0)).chain).seed == 0
