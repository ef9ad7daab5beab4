"""What a caller may ask of a diffusion model, what is refused and how it is said."""

from contextlib import suppress
from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_diffusion import BUNDLE, CLASSES, HEIGHT, LEVELS, STEPS, WIDTH

from protos import ctm_serving_pb2 as pb
from serving.diffusion.options import DiffusionOptions, diffusion_options
from serving.errors import InvalidRequest
from serving.events import Summary
from serving.request import Request
from serving.tensors import tensor_message, text_message
from serving.wire import parse_request

MAX_ROWS, MAX_LINKS = 4, 8
NAMELESS = replace(BUNDLE, diffusion=replace(BUNDLE.diffusion, classes=()))


def parse(bundle: object = BUNDLE, **fields: object) -> Request:
    message = pb.ThinkRequest(**{"inputs": label(2), **fields})
    again = pb.ThinkRequest.FromString(message.SerializeToString())
    return parse_request(again, bundle, max_rows=MAX_ROWS, max_links=MAX_LINKS, arrival=0.0, call_deadline=inf)


def label(*classes: int, dtype: type = np.int64) -> list[pb.Tensor]:
    return [tensor_message("label", np.array(classes, dtype))]


def names(*classes: str) -> list[pb.Tensor]:
    return [text_message("label", classes)]


def other(name: str) -> list[pb.Tensor]:
    return [*label(1), tensor_message(name, np.zeros((1, HEIGHT, WIDTH), np.float32))]


def chain(**options: object) -> dict[str, object]:
    """Options by their kinds: an int is an integer, a float a number."""
    kinds = {int: "integer", float: "number", str: "text", bool: "flag"}
    values = {name: pb.Value(**{kinds[type(value)]: value}) for name, value in options.items()}
    return {"chain": pb.ChainPolicy(options=values)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        # The label.
        pytest.param({"inputs": []}, "inputs: got none, expected label, the class of each row", id="nothing"),
        pytest.param(
            {"inputs": label(1, 4)},
            "input 'label', row 1: got 4, expected a class, 0 to 3 (plain, quick, spoilt, wild)",
            id="unknown class",
        ),
        pytest.param({"inputs": label(-1)}, "input 'label', row 0: got -1, expected a class, 0 to 3", id="below"),
        pytest.param(
            {"inputs": names("plain", "seven")},
            "input 'label', row 1: got 'seven', expected one of plain, quick, spoilt, wild",
            id="unknown name",
        ),
        pytest.param({"inputs": names()}, "input 'label', rows: got 0, expected 1 to 4", id="no rows"),
        pytest.param({"inputs": label(*[1] * 5)}, "input 'label', rows: got 5, expected 1 to 4", id="many rows"),
        pytest.param(
            {"inputs": label(1, dtype=np.int32)},
            "input 'label', datatype: got 'INT32', expected INT64 or BYTES",
            id="datatype",
        ),
        pytest.param(
            {"bundle": NAMELESS, "inputs": names("plain")},
            "input 'label', datatype: got 'BYTES', expected INT64",
            id="a name where classes have none",
        ),
        pytest.param({"bundle": NAMELESS, "inputs": label(9)}, "row 0: got 9, expected a class, 0 to 3", id="nameless"),
        pytest.param(
            {"inputs": [tensor_message("label", np.zeros((2, 1), np.int64))]},
            "input 'label', shape: got [2, 1], expected [rows]",
            id="two dimensions",
        ),
        pytest.param(
            {"inputs": [tensor_message("label", np.zeros((), np.int64))]}, "shape: got [], expected [rows]", id="none"
        ),
        pytest.param(
            {"inputs": [pb.Tensor(name="label", datatype="INT64", shape=[2], data=b"\0" * 8)]},
            "tensor 'label', INT64 [2]: got 8 bytes, expected 16 bytes",
            id="bytes",
        ),
        pytest.param({"inputs": label(1) * 2}, "inputs: got 'label' twice, expected each input once", id="twice"),
        pytest.param(
            {"inputs": other("image")},
            "inputs: got 'image', expected label alone: the server makes 'image' itself",
            id="an image",
        ),
        pytest.param({"inputs": other("level")}, "the server makes 'level' itself", id="a level"),
        pytest.param({"inputs": other("links")}, "the server makes 'links' itself", id="what is fed back"),
        pytest.param({"inputs": other("noise")}, "the server makes 'noise' itself", id="noise"),
        pytest.param({"inputs": other("prompt")}, "inputs: got 'prompt', expected label, and nothing", id="a prompt"),
        # The chain.
        pytest.param(chain(steps=0), f"chain.options, steps: got 0, expected 1 to {LEVELS}, the levels", id="no steps"),
        pytest.param(chain(steps=-3), "chain.options, steps: got -3, expected 1 to 10", id="negative steps"),
        pytest.param(chain(steps=LEVELS + 1), "steps: got 11, expected 1 to 10, the levels of noise", id="many steps"),
        pytest.param(chain(steps=9), "steps: got 9, expected at most 8, this server's limit", id="beyond our limit"),
        pytest.param(chain(steps=4.0), "chain.options, steps: got a number, expected an integer", id="half steps"),
        pytest.param(chain(eta=1.01), "chain.options, eta: got 1.01, expected a number in [0, 1]", id="eta above"),
        pytest.param(chain(eta=-1), "chain.options, eta: got -1.0, expected a number in [0, 1]", id="eta below"),
        pytest.param(chain(eta=float("nan")), "chain.options, eta: got nan, expected a number in", id="no eta"),
        pytest.param(chain(eta="little"), "chain.options, eta: got a text, expected a number or", id="eta in words"),
        pytest.param(chain(every=-1), "chain.options, every: got -1, expected at least 0", id="every"),
        pytest.param(chain(stride=0), "chain.options, stride: got 0, expected at least 1 step at once", id="stride"),
        pytest.param(chain(step=3), "chain.options: got 'step', expected of steps, eta, every, stride", id="unknown"),
        pytest.param(chain(seed=3), "chain.options: got 'seed', expected of steps", id="a seed as an option"),
        pytest.param(
            {"chain": pb.ChainPolicy(max_links=4)},
            "chain.max_links: got 4, expected none: diffusion takes the option steps",
            id="links",
        ),
        # Thresholds.
        pytest.param({"abstain_below": 1.5}, "abstain_below: got 1.5, expected a certainty in [0, 1]", id="abstain"),
        pytest.param({"abstain_below": float("nan")}, "abstain_below: got nan, expected a certainty", id="abstain NaN"),
        pytest.param(
            {"stop": pb.StopPolicy(certainty_threshold=-0.5)},
            "stop.certainty_threshold: got -0.5, expected a certainty in [0, 1]",
            id="threshold",
        ),
    ],
)
def test_what_is_refused(fields, said):
    with pytest.raises(InvalidRequest) as refused:
        parse(**fields)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, DiffusionOptions(steps=STEPS, eta=0.5), id="the model's defaults"),
        pytest.param(chain(steps=8, eta=1, every=0, stride=4), {"every": 0, "stride": 4}, id="all of them"),
        pytest.param(chain(steps=1, eta=0.0), {"every": 1, "stride": 1}, id="the least"),
    ],
)
def test_what_a_caller_asks_of_the_chain(fields, expected):
    found = diffusion_options(fields.get("chain", pb.ChainPolicy()), BUNDLE.diffusion, max_links=MAX_LINKS)
    if isinstance(expected, dict):
        given_options = fields["chain"].options
        steps, eta = given_options["steps"].integer, given_options["eta"].number or given_options["eta"].integer
        expected = DiffusionOptions(steps=steps, eta=eta, **expected)
    assert found == expected


def test_classes_may_be_asked_for_by_name():
    by_name, by_number = parse(inputs=names(*reversed(CLASSES))), parse(inputs=label(3, 2, 1, 0))
    np.testing.assert_array_equal(by_name.inputs["label"], by_number.inputs["label"])
    assert by_name.rows == 4


def test_the_request_holds_what_a_thought_begins_with():
    request = parse(inputs=label(1, 0), chain=pb.ChainPolicy(seed=5))
    expected = {spec.name: (spec.dtype, (2, *spec.shape)) for spec in BUNDLE.program.beginning}
    assert {name: (values.dtype, values.shape) for name, values in request.inputs.items()} == expected
    again = parse(inputs=label(1, 0), chain=pb.ChainPolicy(seed=5))
    np.testing.assert_array_equal(request.inputs["image"], again.inputs["image"])
    assert not np.array_equal(request.inputs["image"][0], request.inputs["image"][1])


def test_a_seed_is_drawn_for_those_who_give_none():
    def told(request: Request) -> int | None:
        summary = Summary([False], [0], 1, 0.0, 0.0)
        request.chain.finish(summary)
        return summary.seed

    seeds = {told(parse()) for _ in range(8)}
    assert len(seeds) > 1
    assert told(parse(chain=pb.ChainPolicy(seed=2**64 - 1))) == 2**64 - 1


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.binary(max_size=40), st.integers(0, 4), st.sampled_from(["INT64", "BYTES", "FP32", ""]))
def test_no_bytes_make_it_fail_otherwise(data, rows, datatype):
    asked = None
    with suppress(InvalidRequest):
        asked = parse(inputs=[pb.Tensor(name="label", datatype=datatype, shape=[rows], data=data)])
    assert asked is None or asked.rows == rows
