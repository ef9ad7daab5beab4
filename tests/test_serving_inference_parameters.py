"""Request parameters of the Open Inference Protocol: the field that each becomes, and what is no parameter."""

import re
from typing import Any

import pytest
from google.protobuf.text_format import Parse

from protos import ctm_serving_pb2 as pb
from protos import open_inference_pb2 as oip
from serving.inference.parameters import flag, write_parameters
from serving.mismatch import Mismatch


def parameter(value: Any) -> oip.InferParameter:
    """As clients send it, by the type that it has in Python."""
    match value:
        case bool():
            return oip.InferParameter(bool_param=value)
        case int():
            return oip.InferParameter(int64_param=value)
        case float():
            return oip.InferParameter(double_param=value)
        case str():
            return oip.InferParameter(string_param=value)
    return value


def written(**values: Any) -> pb.ThinkRequest:
    think = pb.ThinkRequest()
    write_parameters({name: parameter(value) for name, value in values.items()}, think)
    return think


UINT64 = oip.InferParameter(uint64_param=2**64 - 1)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        pytest.param("certainty_threshold", 0.5, "stop { certainty_threshold: 0.5 }", id="a number"),
        pytest.param("certainty_threshold", "0.5", "stop { certainty_threshold: 0.5 }", id="a number as text"),
        pytest.param("certainty_threshold", 1, "stop { certainty_threshold: 1 }", id="a whole number as a number"),
        pytest.param("min_ticks", 2, "stop { min_ticks: 2 }", id="min_ticks"),
        pytest.param("max_ticks", "7", "stop { max_ticks: 7 }", id="a whole number as text"),
        pytest.param("patience", 3, "stop { patience: 3 }", id="patience"),
        pytest.param("energy_threshold", -0.5, "stop { energy_threshold: -0.5 }", id="energy_threshold"),
        pytest.param("energy_delta", 0.25, "stop { energy_delta: 0.25 }", id="energy_delta"),
        pytest.param("disabled", "CERTAIN, ENERGY", "stop { disabled: [CERTAIN, ENERGY] }", id="names"),
        pytest.param("answer_rule", "LAST", "answer_rule: LAST", id="a name"),
        pytest.param("abstain_below", 0.75, "abstain_below: 0.75", id="abstain_below"),
        pytest.param("every", 0, "stream { every: 0 }", id="every"),
        pytest.param("predictions", True, "stream { predictions: true }", id="a flag"),
        pytest.param("leading", 3, "stream { top_k: 3 }", id="leading is a stream's top_k"),
        pytest.param("details", "a,b", "stream { details: ['a', 'b'] }", id="details"),
        pytest.param("max_links", 9, "chain { max_links: 9 }", id="max_links"),
        pytest.param("seed", UINT64, f"chain {{ seed: {2**64 - 1} }}", id="a seed of 64 bits"),
        pytest.param(
            "temperature", 0.5, "chain { options { key: 'temperature' value { number: 0.5 } } }", id="temperature"
        ),
        pytest.param("top_k", 5, "chain { options { key: 'top_k' value { integer: 5 } } }", id="top_k is a text's"),
        pytest.param("top_p", "0.5", "chain { options { key: 'top_p' value { number: 0.5 } } }", id="top_p"),
        pytest.param("stop", "5", "chain { options { key: 'stop' value { text: '5' } } }", id="a text"),
        pytest.param("steps", 4, "chain { options { key: 'steps' value { integer: 4 } } }", id="steps"),
        pytest.param("eta", 1, "chain { options { key: 'eta' value { number: 1 } } }", id="eta"),
        pytest.param("stride", 2, "chain { options { key: 'stride' value { integer: 2 } } }", id="stride"),
        pytest.param(
            "images_every",
            2,
            "chain { options { key: 'every' value { integer: 2 } } }",
            id="images_every is diffusion's",
        ),
        pytest.param("timeout_seconds", 1.5, "timeout_seconds: 1.5", id="timeout_seconds"),
        pytest.param("timeout", 1_500_000, "timeout_seconds: 1.5", id="timeout is in microseconds"),
        pytest.param("timeout", 0, "", id="no timeout"),
        pytest.param("priority", 1, "priority: 99", id="the highest priority"),
        pytest.param("priority", 100, "priority: 0", id="the default priority"),
        pytest.param("priority", oip.InferParameter(uint64_param=199), "priority: -99", id="the lowest priority"),
        pytest.param("priority", 0, "", id="no priority"),
        pytest.param("binary_data_output", True, "", id="what concerns HTTP"),
    ],
)
def test_a_parameter_becomes_a_field_of_the_same_request_that_think_takes(name, value, expected):
    assert written(**{name: value}) == Parse(expected, pb.ThinkRequest())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param({"treshold": 0.5}, "parameters: got 'treshold', expected of .*certainty_threshold", id="unknown"),
        pytest.param({"x" * 10_000: 1}, r"got 'xxx.{1,60}\.\.\., expected of", id="a huge name"),
        pytest.param(
            {"certainty_threshold": "much"}, "'certainty_threshold': got 'much', expected a number", id="word"
        ),
        pytest.param({"certainty_threshold": True}, "got True, expected a number", id="a flag for a number"),
        pytest.param({"max_ticks": -1}, "'max_ticks': got -1, expected a whole number, 0 to 4294967295", id="negative"),
        pytest.param({"max_ticks": 2**32}, "got 4294967296, expected a whole number", id="too large"),
        pytest.param({"max_ticks": 2.0}, r"got 2\.0, expected a whole number", id="not whole"),
        pytest.param({"max_ticks": "9" * 5_000}, r"got '9+\.\.\., expected a whole", id="digits without end"),
        pytest.param({"max_ticks": True}, "got True, expected a whole number", id="a flag for a whole number"),
        pytest.param({"predictions": 1}, "got 1, expected true or false", id="a number for a flag"),
        pytest.param({"predictions": "true"}, "got 'true', expected true or false", id="a text for a flag"),
        pytest.param({"stop": 5}, "got 5, expected a text", id="a number for a text"),
        pytest.param({"disabled": "CERTAIN,SURE"}, "got 'SURE', expected any of .*CERTAIN", id="no such reason"),
        pytest.param(
            {"disabled": "CERTAIN," * 9_999}, "got 79992 characters, expected at most 16384", id="a long list"
        ),
        pytest.param({"answer_rule": "BEST"}, "got 'BEST', expected one of MOST_CERTAIN, LAST", id="no such rule"),
        pytest.param({"priority": 200}, "got 200, expected a whole number, 0 to 199", id="no such level"),
        pytest.param({"seed": oip.InferParameter()}, "'seed': got nothing, expected", id="no value"),
        pytest.param({"timeout": 5, "timeout_seconds": 5}, "got timeout and timeout_seconds, expected one", id="both"),
    ],
)
def test_what_is_no_parameter_is_refused_with_what_was_met_and_expected(values, said):
    with pytest.raises(Mismatch) as raised:
        written(**values)
    assert re.search(said, str(raised.value)), raised.value
    assert len(str(raised.value)) < 1_000


def test_a_flag_is_down_unless_it_is_raised():
    assert [flag({"a": parameter(True)}, name) for name in "ab"] == [True, False]
