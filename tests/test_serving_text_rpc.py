"""Texts over a real channel: what a caller and a client see of a chain of tokens, and how chains share the slots."""

import asyncio
from collections import Counter
from typing import Any

import grpc
import numpy as np
import pytest
from scripted import Paused
from scripted_server import scripted_server
from scripted_text import BUNDLE, END, ScriptedText, library_tokenizer, table, ticks_of, tokens_of

from protos import ctm_serving_pb2 as pb
from serving import client as api
from serving.client import Answer, AsyncClient, ChainEnd, Client, Summary, Tick
from serving.client.message import generate_message
from serving.outbox import Outbox
from serving.request import Request
from serving.tensors import array, text_message

BOOK = tokens_of("In the beginning God created the")
FOLLOWING = library_tokenizer().decode(BOOK[1:])
PROMPT = library_tokenizer().decode(BOOK[:1])


class PausedText(Paused, ScriptedText):
    """Waits before its first tick."""


def serving(
    logits: np.ndarray | None = None, *, num_slots: int = 4, seconds_per_tick: float = 0.0, **settings: Any
) -> Any:
    """A server whose model writes the book after its first word, unless it has another table."""
    backend = ScriptedText(table(*BOOK) if logits is None else logits, num_slots, seconds_per_tick=seconds_per_tick)
    return scripted_server(bundle=BUNDLE, backend=backend, num_slots=num_slots, **settings)


def asked(*prompts: str, **options: Any) -> pb.ThinkRequest:
    return generate_message("verses", prompts, **{"temperature": 0.0, "max_links": len(BOOK) - 1, **options})


async def events(server: Any, request: pb.ThinkRequest, **call: Any) -> list[pb.ThinkEvent]:
    return [event async for event in server.stub.Think(request, **call)]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_text_comes_token_by_token_each_with_its_own_ticks():
    async with serving() as server:
        *answers, last = await events(server, asked(PROMPT, seed=5))
    answers = [event.answer for event in answers]
    assert [answer.link for answer in answers] == list(range(len(BOOK) - 1))
    assert [int(array(answer.outputs[0])) for answer in answers] == BOOK[1:]
    assert [answer.ticks_used for answer in answers] == [ticks_of(token) for token in BOOK[:-1]]
    assert "".join(answer.text for answer in answers) == FOLLOWING == last.summary.texts[0]
    assert not any(answer.HasField("prediction") for answer in answers), "nobody asked for them"
    assert [answer.chain_end for answer in answers] == [0] * (len(answers) - 1) + [pb.MAX_LINKS]
    assert last.summary.seed == 5
    assert last.summary.ticks_used == sum(answer.ticks_used for answer in answers)


async def test_without_a_chain_it_is_a_next_token_thought():
    request = pb.ThinkRequest(model="verses", inputs=[text_message("text", [PROMPT])], stream=pb.StreamPolicy(top_k=1))
    async with serving() as server:
        *ticks, answer, summary = await events(server, request)
    assert {tick.top[0].label for event in ticks for tick in event.ticks.ticks} == {answer.answer.top[0].label}
    assert answer.answer.top[0].index == BOOK[1]
    assert array(answer.answer.prediction).argmax() == BOOK[1]
    assert answer.answer.chain_end == pb.MAX_LINKS
    assert summary.summary.HasField("seed"), "drawn by the server"


async def test_tokens_are_as_good_as_texts():
    tokens = pb.ThinkRequest(
        model="verses",
        inputs=[pb.Tensor(name="tokens", datatype="INT64", shape=[1, 1], data=np.array([BOOK[0]], "<i8").tobytes())],
        chain=asked(PROMPT).chain,
    )
    async with serving() as server:
        assert (await events(server, tokens))[-1].summary.texts == [FOLLOWING]


@pytest.mark.parametrize(
    ("written", "options", "text", "end"),
    [
        pytest.param("In the beginning", {"stop": " beg"}, " the", ChainEnd.STOP_TEXT, id="inside a token"),
        pytest.param(b"In an", {"stop": ["xx", "an"]}, "n ", ChainEnd.STOP_TEXT, id="across tokens"),
        pytest.param("Ié日.".encode(), {"max_links": 6}, "é日.", ChainEnd.MAX_LINKS, id="characters across tokens"),
        pytest.param("I日".encode()[:-1], {"max_links": 2}, "\ufffd", ChainEnd.MAX_LINKS, id="half a character"),
    ],
)
async def test_how_a_text_ends(written, options, text, end):
    book = tokens_of(written)
    async with serving(table(*book)) as server, AsyncClient(server.address) as client:
        prompt = library_tokenizer().decode(book[:1])
        result = await client.generate("verses", prompt, temperature=0.0, **options).result()
    assert result.text == "".join(answer.text for answer in result.links[0]) == text
    assert result.answers[0].chain_end is end


async def test_the_end_token_ends_it():
    book = [*tokens_of("In the"), END]
    async with serving(table(*book)) as server, AsyncClient(server.address) as client:
        result = await client.generate("verses", "In", temperature=0.0).result()
    assert (result.text, result.answers[0].chain_end, result.answers[0].token) == (" the", ChainEnd.END_TOKEN, END)


async def test_the_same_seed_writes_the_same_text_whatever_the_company():
    wild = table(others=2.0)
    options = {"seed": 11, "max_links": 24}
    async with serving(wild, num_slots=1) as server, AsyncClient(server.address) as client:
        alone = await client.generate("verses", "In the", **options).result()
        again = await client.generate("verses", "In the", **options).result()
        other = await client.generate("verses", "In the", **{**options, "seed": 12}).result()
    async with serving(wild, num_slots=4) as server, AsyncClient(server.address) as client:
        others = [client.generate("verses", ["light", "And God said", "a"], max_links=20) for _ in range(3)]
        crowd, *_ = await asyncio.gather(
            client.generate("verses", ["In the", "earth"], **options).result(), *(one.result() for one in others)
        )
    assert alone.text == again.text == crowd.summary.texts[0] != other.text
    for one, same in zip(alone.links[0], crowd.links[0], strict=True):
        assert (one.token, one.ticks_used, one.certainty) == (same.token, same.ticks_used, same.certainty)


async def test_a_seed_that_the_server_drew_writes_the_text_again():
    async with serving(table(others=2.0)) as server, AsyncClient(server.address) as client:
        drawn = await client.generate("verses", "In the", max_links=12).result()
        again = await client.generate("verses", "In the", max_links=12, seed=drawn.summary.seed).result()
    assert drawn.text == again.text


async def test_requests_of_different_lengths_share_ticks_and_are_cut_to_buckets(monkeypatch):
    long = "And God said, Let there be light"
    backend = PausedText(table(others=2.0), num_slots=4)
    async with scripted_server(bundle=BUNDLE, backend=backend) as server, AsyncClient(server.address) as client:
        submit, submitted = server.runner.submit, []

        def submit_and_count(request: Request) -> Outbox:
            outbox = submit(request)
            submitted.append(request)
            if len(submitted) == 3:
                backend.go_on.set()
            return outbox

        monkeypatch.setattr(server.runner, "submit", submit_and_count)
        results = await asyncio.gather(  # by these seeds, none draws the token that ends a text
            *(
                client.generate("verses", prompt, max_links=16, seed=seed).result()
                for seed, prompt in enumerate(("In", "In the beginning", long), start=1)
            )
        )
        assert server.backend.num_ticks < sum(result.summary.ticks_used for result in results)
        assert server.backend.sizes_seen == {4, 8, 16}
    assert [len(result.links[0]) for result in results] == [16, 16, 16]


async def test_leaving_in_mid_chain_frees_the_slot():
    async with serving(seconds_per_tick=0.005, num_slots=1, max_links=10**6) as server:
        call = server.stub.Think(asked(PROMPT, max_links=10**6))
        for _ in range(3):
            assert (await call.read()).HasField("answer")
        call.cancel()
        await until(lambda: "CANCELLED" in server.ended())
        assert server.runner.engine.idle
        assert (await events(server, asked(PROMPT)))[-1].summary.texts == [FOLLOWING]


async def test_a_deadline_ends_a_chain_with_what_there_is():
    async with serving(table(others=2.0), max_links=10**6) as server:
        server.put_forward(600.0, after=10)
        *answers, last = await events(server, asked("In", max_links=10**6, timeout=600))
    assert last.summary.texts == ["".join(event.answer.text for event in answers)]
    assert 1 < len(answers) < 60
    assert answers[-1].answer.chain_end in (pb.CHAIN_END_UNSPECIFIED, pb.INTERRUPTED)


async def test_chains_of_different_lengths_on_one_stream():
    lengths = [7, 1, 3, 5]

    async def commands():
        for links in lengths:
            yield pb.ThinkCommand(think=asked(PROMPT, max_links=links, request_id=str(links)))
        yield pb.ThinkCommand(think=asked("", request_id="empty"))

    texts, counts, failures = {}, Counter(), {}
    async with serving(num_slots=2) as server:
        async for event in server.stub.ThinkStream(commands()):
            if event.HasField("failure"):
                failures[event.request_id] = event.failure
            elif event.HasField("answer"):
                assert event.answer.link == counts[event.request_id], "links come in order"
                counts[event.request_id] += 1
            else:
                texts[event.request_id] = event.summary.texts[0]
    assert counts == {str(links): links for links in lengths}
    assert texts == {str(links): library_tokenizer().decode(BOOK[1 : links + 1]) for links in lengths}
    assert list(failures) == ["empty"]
    assert "row 0: got an empty text" in failures["empty"].message


async def test_what_is_refused_is_an_invalid_argument():
    async with serving(max_links=9) as server, AsyncClient(server.address) as client:
        for options, said in (
            ({"max_links": 10}, "max_links: got 10"),
            ({"max_links": 9, "top_p": 2.0}, "top_p: got 2"),
        ):
            with pytest.raises(api.InvalidRequest, match=said) as raised:
                await client.generate("verses", "In", **options).result()
            assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_model_of_pictures_writes_no_text():
    async with scripted_server() as server, AsyncClient(server.address) as client:
        with pytest.raises(api.InvalidRequest, match=r"expected 1: script/1 runs one thought a row"):
            await client.generate("script", "In").result()


# ---- the client


async def test_the_client_streams_what_each_token_took():
    async with serving() as server, AsyncClient(server.address) as client:
        generating = client.generate("verses", PROMPT, temperature=0.0, max_links=3, every=None, leading=2)
        got = [event async for event in generating]
    ticks = [event for event in got if isinstance(event, Tick)]
    answers = [event for event in got if isinstance(event, Answer)]
    assert {tick.link for tick in ticks} == {0, 1, 2}
    assert all(len(event.top) == 2 for event in (*ticks, *answers))
    assert [answer.token for answer in answers] == BOOK[1:4] == [answer.top[0].index for answer in answers]
    assert all(answer.certainty == pytest.approx(0.95) and answer.prediction is None for answer in answers)
    summary = got[-1]
    assert isinstance(summary, Summary)
    assert (summary.texts, isinstance(summary.seed, int)) == ((library_tokenizer().decode(BOOK[1:4]),), True)


async def test_the_ordinary_client_does_the_same():
    def run(address: str) -> None:
        with Client(address) as client:
            with client.generate("verses", PROMPT, temperature=0.0, max_links=3, predictions=True) as generating:
                *answers, summary = generating
            assert [answer.prediction.argmax() for answer in answers] == BOOK[1:4]
            assert "".join(answer.text for answer in answers) == summary.texts[0]
            result = client.generate("verses", [PROMPT, PROMPT], temperature=0.0, max_links=2).result()
            assert [len(links) for links in result.links] == [2, 2]
            with pytest.raises(ValueError, match="values to unpack"):
                _ = result.text
            answer = client.answer("verses", {"text": PROMPT}).answers[0]
            assert (answer.top[0].index, answer.token is not None) == (BOOK[1], True)

    async with serving() as server:
        await asyncio.to_thread(run, server.address)


async def test_a_session_writes_texts_too():
    async with serving() as server, AsyncClient(server.address) as client, client.session() as session:
        writing = [await session.generate("verses", PROMPT, temperature=0.0, max_links=links) for links in (4, 2)]
        results = await asyncio.gather(*(one.result() for one in writing))
    assert [len(result.links[0]) for result in results] == [4, 2]


@pytest.mark.parametrize(
    ("prompts", "options", "kind"),
    [
        pytest.param([], {}, ValueError, id="no prompts"),
        pytest.param("In", {"max_links": -1}, ValueError, id="less than none"),
        pytest.param("In", {"temperature": "hot"}, TypeError, id="a word"),
        pytest.param(["In", 3], {}, (ValueError, TypeError), id="a number among them"),
        pytest.param("In", {"seed": 2**64}, ValueError, id="a seed beyond 64 bits"),
    ],
)
def test_what_no_server_could_take(prompts, options, kind):
    with pytest.raises(kind):
        generate_message("verses", prompts, **options)
