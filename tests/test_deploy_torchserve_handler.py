"""TorchServe's handler, with TorchServe played by a few lines: one batch in, one reply to each request out."""

import base64
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy.torchserve.archive import Settings
from deploy.torchserve.handler import ThinkHandler
from deploy.torchserve.json_form import read_request
from deploy.torchserve.meters import Meters
from serving.bundle import load_bundle
from serving.errors import InvalidRequest
from serving.policy import StopPolicy
from serving.report import StepReport
from serving.request import Request, StopReason
from serving.scheduler import Ended
from serving.tensors import array
from serving.waiting import Thought

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = load_bundle(ROOT / "model_store" / "mnist" / "1")
DIGITS = [
    (np.asarray(Image.open(path), np.float32) / 255)[None, None]
    for path in sorted((ROOT / "examples" / "digits").glob("*.png"))[:6]
]


class PredictionException(Exception):
    """As TorchServe's: a sentence and an HTTP status."""


@dataclass
class Context:
    """What TorchServe hands over beside a batch."""

    headers: list[dict[str, Any]] = field(default_factory=list)
    sent: list[dict[str, bytes]] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    types: dict[int, str] = field(default_factory=dict)
    response_headers: dict[int, dict[str, str]] = field(default_factory=dict)

    @property
    def request_ids(self) -> dict[int, str]:
        return {place: f"id-{place}" for place in range(len(self.headers))}

    def get_request_header(self, place: int, name: str) -> Any:
        return self.headers[place].get(name)

    def get_all_request_header(self, place: int) -> dict[str, Any]:
        return self.headers[place]

    def set_response_header(self, place: int, name: str, value: str) -> None:
        self.response_headers.setdefault(place, {})[name] = value

    def set_response_content_type(self, place: int, value: str) -> None:
        self.types[place] = value

    def set_response_status(self, status: int, phrase: str, place: int) -> None:
        assert phrase
        self.statuses[place] = status


class Meter:
    """One of TorchServe's metrics."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, list[str]]] = []

    def add_or_update(self, value: float, labels: list[str]) -> None:
        self.seen.append((value, labels))


@dataclass
class Worker:
    """A handler that TorchServe has initialised."""

    handler: ThinkHandler
    meters: dict[str, Meter]

    def handle(self, *requests: object, grpc: str = "", **headers: str) -> tuple[list[bytes], Context]:
        """Bodies to replies: over HTTP, or over gRPC under that name."""
        name = grpc or "body"
        own = {name: {"content-type": ""}} if grpc else {name: {"content-type": ""}, "Host": "here"}
        context = Context(headers=[{**own, **headers} for _ in requests])
        rows = [{name: request if isinstance(request, bytes) else json.dumps(request)} for request in requests]
        return self.handler.handle(rows, context), context


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    def send(bodies: dict[int, bytes], ids: dict[int, str], _: str, status: int, context: Context) -> None:
        assert status == 200
        assert bodies
        context.sent.append({ids[place]: body for place, body in bodies.items()})

    archive = tmp_path_factory.mktemp("archive")
    (archive / "bundle" / "mnist").mkdir(parents=True)
    (archive / "bundle" / "mnist" / "1").symlink_to(BUNDLE.path)
    meters: dict[str, Meter] = {}
    context: Any = SimpleNamespace(
        system_properties={"model_dir": str(archive)},
        model_yaml_config=Settings(num_slots=2, batch_size=8, grpc_streams=True).model_config(BUNDLE),
        metrics=SimpleNamespace(get_metric=lambda name, _: meters.setdefault(name, Meter())),
        model_name="mnist",
    )
    torchserve = {
        "ts": {},
        "ts.handler_utils": {},
        "ts.handler_utils.utils": {"send_intermediate_predict_response": send},
        "ts.metrics": {},
        "ts.metrics.metric_type_enum": {"MetricTypes": str},
        "ts.utils": {},
        "ts.utils.util": {"PredictionException": PredictionException},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, contents in torchserve.items():
            module = ModuleType(name)
            vars(module).update(contents)
            patch.setitem(sys.modules, name, module)
        handler = ThinkHandler()
        handler.initialize(context)
        yield Worker(handler, meters)


def think(image: np.ndarray[Any, Any], **fields: object) -> dict[str, object]:
    """A request, its image in base64."""
    data = base64.b64encode(image.tobytes()).decode()
    tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": data}
    return {"inputs": [tensor], **fields}


def nested(image: np.ndarray[Any, Any], **fields: object) -> dict[str, object]:
    """The same in nested lists."""
    return {"inputs": [{"name": "image", "data": image.tolist()}], **fields}


def plainly(reply: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What must not depend on how a request came, nor on its company."""
    names = ("row", "ticks_used", "answer_tick", "certainty", "stop_reason", "abstained")
    return [(*(answer[name] for name in names), answer["prediction"]["data"]) for answer in reply["answers"]]


def test_a_request_is_answered_the_same_alone_in_company_and_in_nested_lists(worker: Worker) -> None:
    alone = [json.loads(worker.handle(think(image))[0][0]) for image in DIGITS]
    company, context = worker.handle(*map(think, DIGITS))
    in_lists, _ = worker.handle(*map(nested, DIGITS))
    together, _ = worker.handle(think(np.concatenate(DIGITS)))
    expected = [plainly(reply) for reply in alone]
    assert [plainly(json.loads(reply)) for reply in company] == expected
    assert [plainly(json.loads(reply)) for reply in in_lists] == expected
    rows = [answer[1:] for answer in plainly(json.loads(together[0]))]
    assert rows == [answer[1:] for (answer,) in expected], "rows of one request share the slots as requests do"
    assert len({answer["ticks_used"] for reply in alone for answer in reply["answers"]}) > 1
    assert {answer["stop_reason"] for reply in alone for answer in reply["answers"]} == {"CERTAIN", "TICK_BUDGET"}
    assert alone[0]["summary"] == {**alone[0]["summary"], "model": "mnist", "version": 1, "abstain_mask": [False]}
    assert set(context.statuses.values()) == {200}
    assert set(context.types.values()) == {"application/json"}
    assert not context.sent, "nobody asked to watch"


def test_those_who_watch_see_every_tick_and_their_neighbours_see_none(worker: Worker) -> None:
    requests = [think(image) for image in DIGITS]
    requests[2] |= {"stream": {"every": 1, "top_k": 1}, "request_id": "watched"}
    requests[3] |= {"stream": {"every": 0}}
    replies, context = worker.handle(*requests)
    quiet, _ = worker.handle(*map(think, DIGITS))

    assert {place for sent in context.sent for place in sent} <= {"id-2", "id-3"}
    lines = {
        place: b"".join(sent.get(f"id-{place}", b"") for sent in context.sent) + replies[place] for place in (2, 3)
    }
    events = {place: [json.loads(line) for line in lines[place].splitlines()] for place in lines}
    ticks = [tick for event in events[2] if "ticks" in event for tick in event["ticks"]["ticks"]]
    answer = next(event["answer"] for event in events[2] if "answer" in event)
    assert [tick["tick"] for tick in ticks] == list(range(1, answer["ticks_used"] + 1))
    assert {event["request_id"] for event in events[2]} == {"watched"}
    assert ticks[-1]["top"][0]["label"] == "1"
    for place in (2, 3):
        assert "summary" in events[place][-1]
        watched = next(event["answer"] for event in events[place] if "answer" in event)
        assert plainly({"answers": [watched]}) == plainly(json.loads(quiet[place]))
        assert context.types[place] == "application/x-ndjson"
    assert [event.keys() - {"request_id"} for event in events[3]] == [{"answer"}, {"summary"}], "answers alone"


BAD = [
    pytest.param(b"{", 400, "request: got no JSON", id="no JSON"),
    pytest.param(b"\xff", 400, "request: got no JSON", id="no text"),
    pytest.param(b"[" * 100_000, 400, "request: got no JSON", id="endless depth"),
    pytest.param(b'{"request_id": "\\ud800"}', 400, "surrogates not allowed", id="half a character"),
    pytest.param(b"[1]", 400, "request: got a list, expected a JSON object", id="a list"),
    pytest.param({"inputs": {}}, 400, "inputs: got an object, expected a list of tensors", id="inputs are no list"),
    pytest.param({"inputs": [3]}, 400, "inputs[0]: got a number, expected a tensor", id="an input is no tensor"),
    pytest.param({}, 400, "inputs: got none, expected also image", id="no inputs"),
    pytest.param({"image": 1}, 400, "no field named", id="unknown field"),
    pytest.param({"inputs": [{"name": "image", "data": 5}]}, 400, "inputs[0]: got", id="no base64"),
    pytest.param({"inputs": [{"name": "image", "data": [[1], [2, 3]]}]}, 400, "different lengths", id="ragged"),
    pytest.param({"inputs": [{"name": "image", "data": [None]}]}, 400, "numbers, or a list of texts", id="null"),
    pytest.param(
        {"inputs": [{"name": "image", "data": ["a"]}]}, 400, "datatype: got 'BYTES', expected FP32", id="text"
    ),
    pytest.param(
        {"inputs": [{"name": "image", "data": [1.0], "shape": [1, 28, 28]}]}, 400, "shape: got [1, 28, 28]", id="shape"
    ),
    pytest.param({"inputs": [{"name": "image", "data": [1.0], "size": 3}]}, 400, "got 'size'", id="unknown part"),
    pytest.param(nested(DIGITS[0] + 1), 400, "largest value: got 2", id="out of the range"),
    pytest.param(think(DIGITS[0], stop={"max_ticks": 10**6}), 400, "stop.max_ticks: got 1000000", id="policy"),
    pytest.param(think(DIGITS[0], stop={"max_ticks": -1}), 400, "request: got", id="no such number"),
    pytest.param(think(DIGITS[0], model="kjv"), 404, "served here is mnist/1", id="another model"),
    pytest.param(think(DIGITS[0], timeout_seconds=1e-9), 504, "before any row", id="no time"),
    pytest.param(think(DIGITS[0], timeout_seconds=1e-9, stream={"every": 1}), 504, "before any row", id="nor to watch"),
]


@pytest.mark.parametrize(("request_", "status", "sentence"), BAD)
def test_bad_input_is_told_so_and_hurts_nobody(worker: Worker, request_: object, status: int, sentence: str) -> None:
    good = think(DIGITS[0])
    replies, context = worker.handle(good, request_, good)
    failure = json.loads(replies[1])["failure"]
    assert (context.statuses, context.types[1]) == ({0: 200, 1: status, 2: 200}, "application/json")
    assert sentence in failure["message"]
    assert plainly(json.loads(replies[0])) == plainly(json.loads(replies[2]))
    with pytest.raises(PredictionException) as caught:
        worker.handle(request_, grpc="data")
    assert caught.value.args == (failure["message"], status), "alone, a gRPC request fails with a status"
    together, among = worker.handle(good, request_, grpc="data")
    assert json.loads(together[1])["failure"] == failure, "among others it is told in its reply"
    assert plainly(json.loads(together[0])) == plainly(json.loads(replies[0]))
    assert among.response_headers[1]["ts_stream_next"] == "false"


def told(lines: bytes) -> list[Any]:
    """Ticks and answer, without how many lines they stand on."""
    events = [json.loads(line) for line in lines.splitlines()]
    ticks = [tick for event in events for tick in event.get("ticks", {}).get("ticks", [])]
    return [*ticks, *(event["answer"] for event in events if "answer" in event)]


def test_grpc_is_streamed_where_it_is_asked_by_name(worker: Worker) -> None:
    asked = think(DIGITS[0])
    (last,), context = worker.handle(asked, grpc="stream")
    sent = b"".join(body for sent in context.sent for body in sent.values())
    assert all("ticks" in json.loads(line) for line in sent.splitlines()), "every tick, as Think sends them"
    assert "summary" in json.loads(last.splitlines()[-1])
    assert context.response_headers[0]["ts_stream_next"] == "false", "else StreamPredictions waits for ever"
    (whole,), context = worker.handle(think(DIGITS[0], stream={"every": 1}), grpc="data")
    assert not context.sent, "Predictions breaks on a second message"
    assert told(whole) == told(sent + last)
    finals, context = worker.handle(asked, asked, grpc="stream")
    for place, final in enumerate(finals):
        assert told(b"".join(sent[f"id-{place}"] for sent in context.sent) + final) == told(whole)


@pytest.mark.parametrize(
    ("row", "met"), [({}, "none"), ({"image": b"{}"}, "'image'"), ({"body": b"{}", "x": b""}, "'body', 'x'")]
)
def test_a_request_stands_under_one_name(worker: Worker, row: dict[str, bytes], met: str) -> None:
    context = Context(headers=[{"Host": "here"}])
    (reply,) = worker.handler.handle([row], context)
    assert json.loads(reply)["failure"]["message"] == f"request: got {met}, expected one of body, data, stream"


def test_a_model_that_fails_fails_its_batch_alone(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(worker.handler._backend, "tick", fail)
        replies, context = worker.handle(*map(think, DIGITS))
    assert set(context.statuses.values()) == {500}
    assert {json.loads(reply)["failure"]["message"] for reply in replies} == {
        "the model failed on a tick (RuntimeError)"
    }
    replies, context = worker.handle(*map(think, DIGITS))
    assert set(context.statuses.values()) == {200}


def test_a_request_ends_before_torchserve_loses_patience(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.handler, "_patience", 0.0)
    _, context = worker.handle(think(DIGITS[0]))
    assert context.statuses == {0: 504}


def test_a_model_describes_itself_beside_those_who_think(worker: Worker) -> None:
    (alone,), _ = worker.handle({}, describe="True")
    assert json.loads(alone)["labels"] == list(BUNDLE.labels)
    context = Context(headers=[{"Host": "here"}, {"Host": "here", "describe": "True"}])
    reply, manifest = worker.handler.handle([{"body": json.dumps(think(DIGITS[0]))}, {}], context)
    assert (context.statuses, manifest) == ({0: 200, 1: 200}, alone)
    assert json.loads(reply)["answers"]


def test_thoughts_and_refusals_are_counted(worker: Worker) -> None:
    for meter in worker.meters.values():
        meter.seen.clear()
    replies, _ = worker.handle(*map(think, DIGITS), {}, think(DIGITS[0], abstain_below=1.0))
    answers = [answer for reply in replies for answer in json.loads(reply).get("answers", [])]
    ticks = [answer["ticks_used"] for answer in answers]
    seen = {name: meter.seen for name, meter in worker.meters.items()}
    assert sorted(value for value, _ in seen["ctm_ticks_used"]) == sorted(ticks)
    reasons = Counter(answer["stop_reason"] for answer in answers)
    assert Counter(labels[2] for _, labels in seen["ctm_ticks_used"]) == reasons
    assert {labels[2]: count for count, labels in seen["ctm_thoughts_total"]} == reasons
    assert seen["ctm_ticks_saved_total"] == [(sum(20 - used for used in ticks), ["mnist", "Model"])]
    assert seen["ctm_abstentions_total"] == [(1, ["mnist", "Model"])]
    assert seen["ctm_rejections_total"] == [(1, ["mnist", "Model", "INVALID_ARGUMENT"])]
    certainties = sorted(value for value, _ in seen["ctm_stop_certainty"])
    assert certainties == pytest.approx(sorted(answer["certainty"] for answer in answers), abs=1e-5)
    for name in ("ctm_think_seconds", "ctm_first_tick_seconds", "ctm_request_ticks"):
        assert len(seen[name]) == 7


def test_a_link_that_nobody_is_answered_is_a_thought_and_no_abstention() -> None:
    written: dict[str, Meter] = {}
    meters = Meters(lambda name, _: written.setdefault(name, Meter()), "kjv")
    asked = Request(request_id="", inputs={}, rows=1, stop=StopPolicy(max_ticks=20), abstain_below=0.5, arrival=100.0)
    meters.observe(StepReport(ended=[Ended(Thought(asked, 0, link=4), StopReason.DEADLINE)], now=103.0))
    meters.write()
    seen = {name: meter.seen for name, meter in written.items() if meter.seen}
    assert seen == {"ctm_thoughts_total": [(1, ["kjv", "Model", "DEADLINE"])]}


@pytest.mark.parametrize(
    ("data", "datatype", "shape"),
    [
        ([["a", "b"]], None, None),
        (["In the beginning", "Ω"], "BYTES", [2]),
        ([7, 3], "INT64", [2]),
        ([[True]], "BOOL", [1, 1]),
    ],
)
def test_lists_become_what_they_hold(data: list[object], datatype: str | None, shape: list[int] | None) -> None:
    body = json.dumps({"inputs": [{"name": "other", "data": data}]})
    if datatype is None:
        with pytest.raises(InvalidRequest, match="numbers, or a list of texts"):
            read_request(body, BUNDLE)
        return
    (tensor,) = read_request(body, BUNDLE).inputs
    assert (tensor.datatype, list(tensor.shape)) == (datatype, shape)
    if datatype != "BYTES":
        assert array(tensor).tolist() == data
