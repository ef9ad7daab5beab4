"""Texts and samples over the Open Inference Protocol: what comes of all links, and what is seen on the way."""

from typing import Any

import numpy as np
import pytest
import scripted_diffusion
import scripted_text
from asked_inference import columns, infer
from scripted_server import ScriptedServer, scripted_server
from scripted_text import library_tokenizer, table, ticks_of, tokens_of

from protos import ctm_serving_pb2 as pb
from protos import open_inference_pb2 as oip
from serving.client.message import generate_message, sample_message

BOOK = tokens_of("In the beginning God created the")
FOLLOWING = library_tokenizer().decode(BOOK[1:])
PROMPT = library_tokenizer().decode(BOOK[:1])


def writing(others: float = 1.0) -> Any:
    backend = scripted_text.ScriptedText(table(*BOOK, others=others))
    return scripted_server(bundle=scripted_text.BUNDLE, backend=backend)


def drawing() -> Any:
    return scripted_server(bundle=scripted_diffusion.BUNDLE, backend=scripted_diffusion.ScriptedDiffusion())


async def answered(server: ScriptedServer, message: oip.ModelInferRequest) -> dict[str, Any]:
    return columns(await server.inference.ModelInfer(message))


async def streamed(server: ScriptedServer, message: oip.ModelInferRequest) -> list[dict[str, Any]]:
    return [columns(one.infer_response) async for one in server.inference.ModelStreamInfer(iter([message]))]


async def summary_of(server: ScriptedServer, request: pb.ThinkRequest) -> pb.Summary:
    return [event async for event in server.stub.Think(request)][-1].summary


def prompts(*texts: str, **parameters: Any) -> oip.ModelInferRequest:
    return infer(generate_message("verses", texts), **{"temperature": 0.0, "max_links": len(BOOK) - 1, **parameters})


async def test_a_text_is_written_whole():
    async with writing() as server:
        response = await server.inference.ModelInfer(prompts(PROMPT, seed=5))
    found = columns(response)
    assert (found["text"], found["links"], found["chain_end"]) == ([FOLLOWING], [len(BOOK) - 1], ["MAX_LINKS"])
    assert found["ticks_used"] == [sum(ticks_of(token) for token in BOOK[:-1])]
    assert np.argmax(found["prediction"][0]) == BOOK[-1]
    assert response.parameters["seed"].int64_param == 5


async def test_a_text_streams_token_by_token():
    async with writing() as server:
        *links, last = await streamed(server, prompts(PROMPT, every=0))
    assert [one["link"] for one in links] == [[k] for k in range(len(BOOK) - 1)]
    assert [one["token"] for one in links] == [[token] for token in BOOK[1:]]
    assert [one["ticks_used"] for one in links] == [[ticks_of(token)] for token in BOOK[:-1]]
    assert "".join(one["text"][0] for one in links) == FOLLOWING == last["text"][0]
    assert not any("prediction" in one for one in (*links, last)), "nobody asked for them"


async def test_ticks_of_a_text_say_which_link_they_are_of():
    async with writing() as server:
        got = await streamed(server, prompts(PROMPT, max_links=2, predictions=True))
        named = await streamed(server, infer(generate_message("verses", PROMPT, max_links=2), outputs=("prediction",)))
    shown = [(one["link"][0], one["tick"][0]) for one in got if "tick" in one]
    assert shown == [(link, tick) for link in (0, 1) for tick in range(1, 1 + ticks_of(BOOK[link]))]
    assert all(len(one["prediction"][0]) == scripted_text.VOCABULARY for one in got)
    assert [list(one) for one in named if "prediction" in one] == [["prediction"]], "of the last response, as asked"


@pytest.mark.parametrize("seed", [11, 2**64 - 1])
async def test_the_same_seed_writes_the_text_that_think_writes(seed):
    parameters: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "stop": "xx", "max_links": 12}
    async with writing(others=2.0) as server:
        expected = await summary_of(server, generate_message("verses", ["In", "the"], seed=seed, **parameters))
        message = prompts("In", "the", **parameters)
        message.parameters["seed"].uint64_param = seed
        response = await server.inference.ModelInfer(message)
    assert columns(response)["text"] == list(expected.texts)
    assert columns(response)["abstentions"] == list(expected.abstentions)
    told = response.parameters["seed"]
    assert getattr(told, told.WhichOneof("parameter_choice")) == seed


async def test_a_seed_that_the_server_drew_writes_the_text_again():
    async with writing(others=2.0) as server:
        first = await server.inference.ModelInfer(prompts("In", temperature=1.0))
        seed = first.parameters["seed"].int64_param
        again = await server.inference.ModelInfer(prompts("In", temperature=1.0, seed=seed))
    assert columns(first) == columns(again)


async def test_tokens_are_as_good_as_texts_and_one_value_may_have_a_shape_of_its_own():
    length = oip.ModelInferRequest.InferInputTensor(name="length", datatype="INT64", shape=[1, 1])
    tokens = prompts(PROMPT)
    tokens.inputs[0].CopyFrom(oip.ModelInferRequest.InferInputTensor(name="tokens", datatype="INT64", shape=[1, 1]))
    tokens.raw_input_contents[0] = np.array([BOOK[0]], "<i8").tobytes()
    tokens.inputs.append(length)
    tokens.raw_input_contents.append(np.array([1], "<i8").tobytes())
    text = prompts(PROMPT)
    text.inputs[0].shape.append(1)
    async with writing() as server:
        assert [(await answered(server, one))["text"] for one in (tokens, text)] == [[FOLLOWING]] * 2
        metadata = await server.inference.ModelMetadata(oip.ModelMetadataRequest(name="verses"))
    assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [("text", "BYTES", [-1, 1])]
    assert {one.name for one in metadata.outputs} >= {"text", "links", "chain_end", "abstentions"}


async def test_a_sample_is_the_one_that_think_draws():
    async with drawing() as server:
        request = sample_message("dots", ["quick", "plain"], seed=5, steps=3, eta=0.5, abstain_below=0.5)
        expected = await summary_of(server, request)
        message = infer(request, seed=5, steps=3, eta=0.5, abstain_below=0.5)
        found = await answered(server, message)
        *links, last = await streamed(server, infer(request, seed=5, steps=3, eta=0.5, images_every=2, every=0))
    image, estimate = (np.frombuffer(one.data, "<f4").reshape(one.shape).tolist() for one in expected.outputs)
    assert (found["image"], found["estimate"], found["links"]) == (image, estimate, [3, 3])
    assert last["image"] == image
    assert [(one["link"], "image" in one) for one in links if one["row"] == [0]] == [
        ([0], False),
        ([1], True),
        ([2], True),
    ]
    assert [one["level"] for one in links if one["row"] == [1]][-1] == [-1]


async def test_a_row_that_diverges_leaves_the_others():
    async with drawing() as server:
        found = await answered(server, infer(sample_message("dots", [0, scripted_diffusion.WILD])))
    assert found["stop_reason"][1] == "DIVERGED"
    assert found["abstained"] == [False, True]
    assert np.isfinite(found["image"]).all()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        pytest.param({"max_links": 100}, "chain.max_links: got 100, expected 1 to 64", id="too many links"),
        pytest.param({"top_p": 2.0}, "chain.options, top_p: got 2.0", id="an option out of its range"),
        pytest.param({"steps": 3}, "chain.options: got 'steps'", id="an option of other models"),
    ],
)
async def test_what_is_refused_is_what_think_refuses(parameters, said):
    async with writing() as server:
        (failed,) = [one async for one in server.inference.ModelStreamInfer(iter([prompts(PROMPT, **parameters)]))]
    assert said in failed.error_message
