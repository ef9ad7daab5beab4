"""What a caller may ask, what is refused and how it is said; what a caller is told."""

import re
import sys
from math import inf, nan

import numpy as np
import pytest
from fake_bundle import fake_bundle, fake_document
from hypothesis import given
from hypothesis import strategies as st

from protos import ctm_serving_pb2 as pb
from serving import events
from serving.errors import InvalidRequest, QueueFull
from serving.request import AnswerRule, ChainEnd, Request, StopPolicy, StopReason, StreamPolicy
from serving.tensors import array, tensor_message
from serving.wire import event_message, parse_request, ticks_message

BUNDLE = fake_bundle()
MAX_ROWS = 8
MAX_LINKS = 64


def inputs(rows: int = 2, **changes: object) -> list[pb.Tensor]:
    """Sound inputs; a change to None leaves one out."""
    arrays = {
        "image": np.linspace(0, 1, rows * 6, dtype=np.float32).reshape(rows, 2, 3),
        "length": np.arange(rows, dtype=np.int64),
        "mask": np.ones((rows, 2), bool),
        **changes,
    }
    return [tensor_message(name, values) for name, values in arrays.items() if values is not None]


def parse(bundle=BUNDLE, *, arrival: float = 100.0, call_deadline: float = inf, **fields: object) -> Request:
    message = pb.ThinkRequest(**{"inputs": inputs(), "request_id": "mine", **fields})
    again = pb.ThinkRequest.FromString(message.SerializeToString())
    return parse_request(
        again, bundle, max_rows=MAX_ROWS, max_links=MAX_LINKS, arrival=arrival, call_deadline=call_deadline
    )


def image(**changes: object) -> list[pb.Tensor]:
    """Inputs whose image tensor was tampered with."""
    first, *others = inputs()
    for field, value in changes.items():
        first.ClearField(field)
        getattr(first, field).extend(value) if isinstance(value, list) else setattr(first, field, value)
    return [first, *others]


def with_value(value: float) -> list[pb.Tensor]:
    values = np.zeros((2, 2, 3), np.float32)
    values[1, 0, 2] = value
    return inputs(image=values)


def stop(**fields: object) -> dict[str, object]:
    return {"stop": pb.StopPolicy(**fields)}


def stream(**fields: object) -> dict[str, object]:
    return {"stream": pb.StreamPolicy(**fields)}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        # Inputs: the tensor, what was met, what is expected.
        pytest.param({"inputs": []}, "inputs: got none, expected also image, length, mask", id="no inputs"),
        pytest.param({"inputs": inputs(length=None)}, "expected also length", id="one is missing"),
        pytest.param(
            {"inputs": inputs(pixels=np.zeros(2, np.float32))},
            "got 'pixels', expected the inputs of fake/1: image",
            id="unknown name",
        ),
        pytest.param({"inputs": inputs() + inputs()}, "got 'image' twice, expected each input once", id="given twice"),
        pytest.param(
            {"inputs": image(datatype="FP64")}, "input 'image', datatype: got 'FP64', expected FP32", id="datatype"
        ),
        pytest.param({"inputs": image(datatype="fp32")}, "got 'fp32', expected FP32", id="datatype in small letters"),
        pytest.param(
            {"inputs": image(shape=[2, 3, 2])}, "input 'image', shape: got [2, 3, 2], expected [rows, 2, 3]", id="shape"
        ),
        pytest.param({"inputs": image(shape=[2, 6])}, "got [2, 6], expected [rows, 2, 3]", id="fewer dimensions"),
        pytest.param({"inputs": image(shape=[])}, "got [], expected [rows, 2, 3]", id="no dimensions"),
        pytest.param({"inputs": image(shape=[1] * 10**5)}, "got [1, 1, 1,", id="endless shape"),
        pytest.param(
            {"inputs": inputs(length=np.zeros(3, np.int64))}, "2 rows of 'image', 3 rows of 'length'", id="rows differ"
        ),
        pytest.param({"inputs": image(data=b"abc")}, "got 3 bytes, expected 48 bytes", id="size of bytes"),
        pytest.param({"inputs": image(data=b"")}, "got 0 bytes, expected 48 bytes", id="no bytes"),
        pytest.param({"inputs": inputs(rows=0)}, "input 'image', rows: got 0, expected 1 to 8", id="zero rows"),
        pytest.param(
            {"inputs": inputs(rows=9)}, "input 'image', rows: got 9, expected 1 to 8", id="more than max_rows"
        ),
        pytest.param({"inputs": image(shape=[2**62, 2, 3])}, "rows: got 4611686018427387904", id="huge row count"),
        pytest.param({"inputs": image(shape=[-1, 2, 3])}, "rows: got -1", id="negative row count"),
        pytest.param(
            {"inputs": with_value(nan)}, "input 'image', at [1, 0, 2]: got nan, expected finite numbers", id="NaN"
        ),
        pytest.param({"inputs": with_value(inf)}, "got inf, expected finite numbers", id="infinity"),
        pytest.param({"inputs": with_value(-inf)}, "got -inf, expected finite numbers", id="negative infinity"),
        pytest.param(
            {"inputs": with_value(1.5)},
            "input 'image', largest value: got 1.5, expected at most 1",
            id="above the maximum",
        ),
        pytest.param(
            {"inputs": with_value(-0.5)}, "smallest value: got -0.5, expected at least 0", id="below the minimum"
        ),
        pytest.param(
            {"inputs": inputs(length=np.array([3, 10]))},
            "input 'length', largest value: got 10",
            id="integer above the maximum",
        ),
        # When to stop.
        pytest.param(stop(certainty_threshold=1.01), "stop.certainty_threshold: got 1.0", id="threshold above 1"),
        pytest.param(stop(certainty_threshold=-0.5), "expected a certainty in [0, 1]", id="threshold below 0"),
        pytest.param(stop(certainty_threshold=nan), "stop.certainty_threshold: got nan", id="threshold NaN"),
        pytest.param(
            stop(min_ticks=9, max_ticks=8),
            "stop.min_ticks: got 9, expected at most max_ticks, 8",
            id="least above most",
        ),
        pytest.param(
            stop(min_ticks=21),
            "stop.min_ticks: got 21, expected at most max_ticks, 20",
            id="least above the default most",
        ),
        pytest.param(stop(max_ticks=41), "stop.max_ticks: got 41, expected 1 to 40", id="most above the cap"),
        pytest.param(stop(max_ticks=2**32 - 1), "stop.max_ticks: got 4294967295", id="as many ticks as fit"),
        pytest.param(stop(max_ticks=0), "stop.max_ticks: got 0, expected 1 to 40", id="no ticks"),
        pytest.param(stop(patience=0), "stop.patience: got 0, expected at least 1", id="no patience"),
        pytest.param(
            stop(disabled=[5, 6]),
            "stop.disabled: got TICK_BUDGET, expected any of MODEL_DONE, CERTAIN, ENERGY",
            id="budget off",
        ),
        pytest.param(stop(disabled=[0]), "stop.disabled: got STOP_REASON_UNSPECIFIED", id="nothing off"),
        pytest.param(stop(disabled=[99]), "stop.disabled: got 99", id="unknown reason off"),
        pytest.param(stop(energy_threshold=nan), "stop.energy_threshold: got nan, expected a number", id="energy NaN"),
        pytest.param(stop(energy_delta=nan), "stop.energy_delta: got nan", id="energy delta NaN"),
        pytest.param(
            stop(energy_delta=-0.5),
            "stop.energy_delta: got -0.5, expected a number of at least 0",
            id="energy delta below 0",
        ),
        # What to send, and the rest.
        pytest.param(
            stream(details=["attention", "thoughts"]),
            "stream.details: got 'thoughts', expected of attention, sync",
            id="unknown detail",
        ),
        pytest.param(
            stop(disabled=[StopReason.ENERGY] * 20_000),
            "stop and stream: got 20004 bytes, expected at most 16384; say each thing once",
            id="the same again and again",
        ),
        pytest.param(
            {"answer_rule": 3},
            "answer_rule: got 3, expected one of ANSWER_RULE_UNSPECIFIED, MOST_CERTAIN, LAST",
            id="unknown rule",
        ),
        pytest.param({"answer_rule": -1}, "answer_rule: got -1", id="negative rule"),
        pytest.param(
            {"abstain_below": 1.5}, "abstain_below: got 1.5, expected a certainty in [0, 1]", id="abstain above 1"
        ),
        pytest.param({"abstain_below": nan}, "abstain_below: got nan", id="abstain NaN"),
        pytest.param({"timeout_seconds": 0.0}, "timeout_seconds: got 0.0, expected more than 0", id="no time"),
        pytest.param({"timeout_seconds": -1.0}, "timeout_seconds: got -1.0", id="negative time"),
        pytest.param({"timeout_seconds": nan}, "timeout_seconds: got nan", id="time NaN"),
        pytest.param(
            {"chain": pb.ChainPolicy(max_links=2)},
            "chain.max_links: got 2, expected 1: fake/1 runs one thought a row",
            id="a chain",
        ),
        pytest.param({"chain": pb.ChainPolicy(max_links=0)}, "chain.max_links: got 0", id="a chain of nothing"),
        pytest.param(
            {"chain": pb.ChainPolicy(options={"top_p": pb.Value(number=1)})},
            "chain.options: got 'top_p'",
            id="chain options",
        ),
        pytest.param(
            {"request_id": "x" * 257}, "request_id: got 257 characters, expected at most 256", id="endless id"
        ),
    ],
)
def test_what_is_refused(fields, said):
    with pytest.raises(InvalidRequest) as refused:
        parse(**fields)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 1000, "a status holds little"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param(
            stop(energy_threshold=0.5),
            "stop.energy_threshold: got 0.5, expected none: fake/1 has no energy head",
            id="energy",
        ),
        pytest.param(stop(energy_delta=0.5), "has no energy head", id="energy delta"),
        pytest.param(
            stop(patience=2), "stop.patience: got 2, expected 1: the prediction of fake/1 has no classes", id="patience"
        ),
        pytest.param(
            stream(top_k=1), "stream.top_k: got 1, expected 0: the prediction of fake/1 has no classes", id="top k"
        ),
    ],
)
def test_what_a_model_without_energy_or_classes_refuses(fields, said):
    plain = [
        {"name": "prediction", "datatype": "FP32", "shape": [], "role": "PREDICTION"},
        {"name": "certainty", "datatype": "FP32", "shape": [], "role": "CERTAINTY"},
    ]
    bundle = fake_bundle(outputs=plain, labels=None, stop=None)
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        parse(bundle, **fields)
    assert parse(bundle, **stop(disabled=[StopReason.ENERGY], patience=1)).stop.energy_threshold == -inf


DEFAULTS = {"max_ticks": 20, "min_ticks": 4, "certainty_threshold": 0.75, "patience": 2}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, {}, id="the bundle's defaults"),
        pytest.param({"certainty_threshold": 0.5}, {"certainty_threshold": 0.5}, id="a threshold"),
        pytest.param({"certainty_threshold": 0.0}, {"certainty_threshold": 0.0}, id="zero is a threshold"),
        pytest.param({"max_ticks": 40}, {"max_ticks": 40}, id="up to the cap"),
        pytest.param(
            {"max_ticks": 2}, {"max_ticks": 2, "min_ticks": 2}, id="a smaller budget lowers the least with it"
        ),
        pytest.param({"min_ticks": 20}, {"min_ticks": 20}, id="least as many as most"),
        pytest.param({"min_ticks": 0}, {"min_ticks": 0}, id="no least"),
        pytest.param({"patience": 1}, {"patience": 1}, id="no patience"),
        pytest.param({"patience": 2**32 - 1}, {"patience": 41}, id="endless patience never comes true"),
        pytest.param({"disabled": [4]}, {"certainty_threshold": inf}, id="certainty off"),
        pytest.param({"disabled": [4], "certainty_threshold": 0.5}, {"certainty_threshold": inf}, id="off wins"),
        pytest.param({"disabled": [3, 3]}, {"model_done": False}, id="the model's wish off"),
        pytest.param({"energy_threshold": -2.5}, {"energy_threshold": -2.5}, id="energy"),
        pytest.param({"energy_delta": 0.25}, {"energy_delta": 0.25}, id="energy delta"),
        pytest.param({"energy_threshold": 1, "energy_delta": 1, "disabled": [5]}, {}, id="energy off"),
    ],
)
def test_when_a_thought_stops(fields, expected):
    assert parse(**stop(**fields)).stop == StopPolicy(**{**DEFAULTS, **expected})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, {"every": 1}, id="each tick"),
        pytest.param({"every": 0}, {"every": 0}, id="answers only"),
        pytest.param({"every": 2**32 - 1}, {"every": 41}, id="never: more seldom than the tick cap allows"),
        pytest.param({"predictions": True}, {"predictions": True}, id="predictions"),
        pytest.param({"top_k": 2}, {"top_k": 2}, id="two classes"),
        pytest.param({"top_k": 2**32 - 1}, {"top_k": 3}, id="more classes than there are"),
        pytest.param(
            {"details": ["sync", "attention", "sync"]}, {"details": ("sync", "attention")}, id="details, once each"
        ),
    ],
)
def test_what_a_caller_sees(fields, expected):
    assert parse(**stream(**fields)).stream == StreamPolicy(**expected)


@pytest.mark.parametrize(
    ("timeout", "call", "deadline"),
    [
        pytest.param(None, inf, inf, id="none"),
        pytest.param(None, 130.0, 130.0, id="the call's"),
        pytest.param(5.0, inf, 105.0, id="the request's"),
        pytest.param(5.0, 103.0, 103.0, id="the call's is earlier"),
        pytest.param(2.0, 103.0, 102.0, id="the request's is earlier"),
        pytest.param(1e300, inf, 1e300, id="endless"),
        pytest.param(inf, inf, inf, id="infinite"),
    ],
)
def test_the_deadline_is_the_earlier_one(timeout, call, deadline):
    fields = {} if timeout is None else {"timeout_seconds": timeout}
    assert parse(arrival=100.0, call_deadline=call, **fields).deadline == deadline


def test_a_request_without_policies_takes_the_bundles():
    asked = parse()
    assert asked.stop is BUNDLE.stop
    assert (asked.rows, asked.request_id, asked.arrival, asked.priority) == (2, "mine", 100.0, 0)
    assert (asked.answer_rule, asked.abstain_below) == (AnswerRule.MOST_CERTAIN, 0.5)


def test_policies_are_remembered_and_go_with_their_bundle():
    bundle = fake_bundle()
    references = sys.getrefcount(bundle)
    asked = parse(bundle, **stop(max_ticks=3))
    assert parse(bundle, **stop(max_ticks=3)).stop is asked.stop
    for k in range(2_000):
        parse(bundle, **stop(max_ticks=3, certainty_threshold=k / 2_000))
    assert len(bundle.policies) <= 256
    assert sys.getrefcount(bundle) == references, "nothing else keeps a bundle that has left"


def test_a_request_with_everything():
    asked = parse(answer_rule=2, abstain_below=0.0, priority=-3, chain=pb.ChainPolicy(max_links=1, seed=7))
    assert (asked.answer_rule, asked.abstain_below, asked.priority) == (AnswerRule.LAST, 0.0, -3)


def test_inputs_come_in_the_programs_order_as_views_that_nobody_can_write_to():
    asked = parse(inputs=inputs()[::-1])
    assert list(asked.inputs) == ["image", "length", "mask"]
    for values in asked.inputs.values():
        assert not values.flags.writeable
        assert values.flags.aligned
    assert asked.inputs["image"].dtype == np.float32
    np.testing.assert_array_equal(asked.inputs["image"].ravel(), np.linspace(0, 1, 12, dtype=np.float32))


def test_bounds_hold_as_the_datatype_holds_them():
    """0.1 as FP32 is above 0.1: a value that equals the bound is inside."""
    spec = [{"name": "x", "datatype": "FP32", "shape": [], "minimum": 0.1, "maximum": 0.1}]
    value = [tensor_message("x", np.full(1, 0.1, np.float32))]
    assert parse(fake_bundle(inputs=spec), inputs=value).rows == 1


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_otherwise(data):
    message = pb.ThinkRequest()
    try:
        message.ParseFromString(data)
    except Exception:
        return  # gRPC refuses these
    with pytest.raises(InvalidRequest):
        parse_request(message, BUNDLE, max_rows=MAX_ROWS, max_links=MAX_LINKS, arrival=0.0, call_deadline=inf)


LEADING = events.Leading(np.array([[2, 0]]), np.array([[0.75, 0.25]], np.float32))
PREDICTION = np.array([1, 0, 2], np.float32)


def test_ticks_as_their_caller_reads_them():
    ticks = [
        events.Tick(row=1, tick=3, certainty=0.5),
        events.Tick(
            row=0, tick=4, certainty=0.25, energy=-1.5, prediction=PREDICTION, leading=LEADING,
            details={"attention": np.eye(2, dtype=np.float32)},
        ),
    ]  # fmt: skip
    message = ticks_message("mine", ticks, BUNDLE)
    plain, full = message.ticks.ticks
    assert (message.request_id, message.WhichOneof("event")) == ("mine", "ticks")
    assert plain == pb.Tick(row=1, tick=3, certainty=0.5)
    assert not plain.HasField("energy")
    assert (full.tick, full.energy, full.prediction.name) == (4, -1.5, "prediction")
    np.testing.assert_array_equal(array(full.prediction), PREDICTION)
    np.testing.assert_array_equal(array(full.details[0]), np.eye(2))
    assert full.details[0].name == "attention"
    assert list(full.top) == [
        pb.ClassScore(index=2, label="two", score=0.75),
        pb.ClassScore(index=0, label="zero", score=0.25),
    ]


def test_scores_of_several_positions_without_labels():
    leading = events.Leading(np.array([[1], [0]]), np.array([[0.5], [1.0]], np.float32))
    message = event_message("", events.Tick(row=0, tick=1, certainty=1.0, leading=leading), fake_bundle(labels=None))
    assert list(message.ticks.ticks[0].top) == [
        pb.ClassScore(index=1, score=0.5, position=0),
        pb.ClassScore(index=0, score=1.0, position=1),
    ]


def test_a_score_kept_for_the_next_message_is_not_the_one_that_was_sent():
    first = event_message("", events.Tick(row=0, tick=1, certainty=1.0, leading=LEADING), BUNDLE)
    other = events.Leading(LEADING.indices, LEADING.scores / 2)
    event_message("", events.Tick(row=0, tick=2, certainty=1.0, leading=other), BUNDLE)
    assert [entry.score for entry in first.ticks.ticks[0].top] == [0.75, 0.25]


def test_an_answer_as_its_caller_reads_it():
    answer = events.Answer(
        row=1, ticks_used=7, answer_tick=5, certainty=0.5, stop_reason=StopReason.ENERGY, abstained=True,
        prediction=PREDICTION, leading=LEADING, energy=0.25,
    )  # fmt: skip
    message = event_message("mine", answer, BUNDLE).answer
    assert (message.row, message.ticks_used, message.answer_tick) == (1, 7, 5)
    assert (message.certainty, message.stop_reason, message.abstained) == (0.5, pb.ENERGY, True)
    assert (message.energy, [entry.label for entry in message.top]) == (0.25, ["two", "zero"])
    np.testing.assert_array_equal(array(message.prediction), PREDICTION)


def test_an_answer_of_a_chain_as_its_caller_reads_it():
    answer = events.Answer(
        row=1, ticks_used=7, answer_tick=5, certainty=0.5, stop_reason=StopReason.CERTAIN, abstained=False, link=3,
        text="ab", outputs={"token": np.array(9)}, chain_end=ChainEnd.END_TOKEN,
    )  # fmt: skip
    message = event_message("mine", answer, BUNDLE).answer
    assert (message.link, message.text, message.chain_end) == (3, "ab", pb.END_TOKEN)
    assert [(tensor.name, array(tensor).tolist()) for tensor in message.outputs] == [("token", 9)]


def test_a_summary_of_a_chain_as_its_caller_reads_it():
    summary = events.Summary([False], [0], 9, 0.5, 2.0, seed=0, texts=["ab", ""])
    message = event_message("mine", summary, BUNDLE).summary
    assert (message.HasField("seed"), message.seed, list(message.texts)) == (True, 0, ["ab", ""])


def test_an_answer_of_a_row_that_never_ticked_is_empty():
    answer = events.Answer(
        row=0, ticks_used=0, answer_tick=0, certainty=0.0, stop_reason=StopReason.DEADLINE, abstained=True
    )
    message = event_message("", answer, BUNDLE).answer
    assert message == pb.Answer(stop_reason=pb.DEADLINE, abstained=True)
    assert not message.HasField("prediction")


def test_a_summary_names_the_model_that_answered():
    summary = events.Summary(
        abstain_mask=[True, False], abstentions=[1, 0], ticks_used=9, queue_seconds=0.5, think_seconds=2.0
    )
    message = event_message("mine", summary, BUNDLE).summary
    assert message == pb.Summary(
        abstain_mask=[True, False],
        abstentions=[1, 0],
        ticks_used=9,
        queue_seconds=0.5,
        think_seconds=2.0,
        model="fake",
        version=1,
    )


def test_a_failure_as_its_caller_reads_it():
    message = event_message("mine", events.Failure(QueueFull("full", retry_after_seconds=2.0)), BUNDLE)
    assert message.failure == pb.Failure(code=pb.RESOURCE_EXHAUSTED, message="full", retry_after_seconds=2.0)


def test_the_protocols_numbers_are_ours():
    assert {reason.name: int(reason) for reason in StopReason} == dict(pb.StopReason.items()[1:])
    assert {rule.name: int(rule) for rule in AnswerRule} == dict(pb.AnswerRule.items()[1:])
    assert {end.name: int(end) for end in ChainEnd if end} == dict(pb.ChainEnd.items()[1:])


def test_a_value_that_is_none_of_those_that_mean_anything_is_refused_with_its_place():
    spec, *others = fake_document()["inputs"]
    signs = fake_bundle(inputs=[{**spec, "minimum": -1, "maximum": 1, "values": [-1, 1]}, *others])
    sound = np.array([1, -1], np.float32)[np.arange(12) % 2].reshape(2, 2, 3)
    assert parse(signs, inputs=inputs(image=sound)).rows == 2
    broken = sound.copy()
    broken[1, 0, 2] = 0.5
    with pytest.raises(InvalidRequest, match=re.escape("'image', at [1, 0, 2]: got 0.5, expected one of -1.0, 1.0")):
        parse(signs, inputs=inputs(image=broken))
