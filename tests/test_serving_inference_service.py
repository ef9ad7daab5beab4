"""The Open Inference Protocol over a real channel: what callers are told, refused, and how they leave."""

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from asked_inference import columns, infer
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from scripted import TICKS, script
from scripted_server import ENDLESS_TICKS, UNBOUNDED, ScriptedServer, scripted_server, think

from protos import ctm_serving_pb2 as pb
from protos import open_inference_pb2 as oip
from serving.errors import BundleRefused, UnknownModel

RISING = [0.1, 0.2, 0.5, 0.6, 0.7, 0.9, 0.95, 0.99]
SURE, SLOW = script([0.95]), script([0.1])
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def endless(rows: int = 1) -> oip.ModelInferRequest:
    return infer(think(*[SLOW] * rows), max_ticks=ENDLESS_TICKS)


async def error(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def until(condition: Any) -> None:
    async with asyncio.timeout(200):
        while not condition():
            await asyncio.sleep(0.005)


async def streamed(server: ScriptedServer, *requests: oip.ModelInferRequest) -> list[oip.ModelStreamInferResponse]:
    return [response async for response in server.inference.ModelStreamInfer(iter(requests))]


def final(response: oip.ModelStreamInferResponse) -> bool:
    return response.infer_response.parameters["triton_final_response"].bool_param


async def test_a_request_is_answered_as_think_answers_it():
    rows = (SURE, script(RISING, classes=[1]), script([0.1], energies=[2.5]))
    async with scripted_server(num_slots=2) as server:
        got = await server.inference.ModelInfer(infer(think(*rows, request_id="mine"), abstain_below=0.5))
        events = [event async for event in server.stub.Think(think(*rows, abstain_below=0.5))]
    answers = sorted((event.answer for event in events if event.HasField("answer")), key=lambda answer: answer.row)
    assert (got.model_name, got.model_version, got.id) == ("script", "1", "mine")
    found = columns(got)
    assert list(found) == [
        *("prediction", "certainty", "ticks_used", "answer_tick", "stop_reason", "abstained", "energy")
    ]
    assert found["ticks_used"] == [answer.ticks_used for answer in answers] == [1, 6, TICKS]
    assert found["answer_tick"] == [answer.answer_tick for answer in answers]
    assert found["stop_reason"] == [pb.StopReason.Name(answer.stop_reason) for answer in answers]
    assert found["abstained"] == [answer.abstained for answer in answers] == [False, False, True]
    assert found["certainty"] == pytest.approx([answer.certainty for answer in answers])
    assert found["energy"] == pytest.approx([answer.energy for answer in answers])
    assert found["prediction"] == [np.frombuffer(answer.prediction.data, "<f4").tolist() for answer in answers]


async def test_typed_inputs_are_answered_typed_and_only_with_the_outputs_named():
    message = infer(think(SURE, SURE), outputs=("ticks_used", "stop_reason", "abstained"))
    for tensor, data in zip(message.inputs, message.raw_input_contents, strict=True):
        tensor.contents.fp32_contents.extend(np.frombuffer(data, "<f4"))
    del message.raw_input_contents[:]
    async with scripted_server() as server:
        got = await server.inference.ModelInfer(message)
    assert not got.raw_output_contents
    assert columns(got) == {"ticks_used": [1, 1], "stop_reason": ["CERTAIN"] * 2, "abstained": [False] * 2}


async def test_ticks_stream_as_they_happen_and_the_last_response_says_so():
    request = infer(think(script(RISING, classes=[1]), request_id="mine"), predictions=True, leading=1, details="place")
    async with scripted_server() as server:
        *ticks, last = [response.infer_response for response in await streamed(server, request)]
        whole = await server.inference.ModelInfer(
            infer(think(script(RISING, classes=[1]), request_id="mine"), leading=1)
        )
    found = [columns(tick) for tick in ticks]
    assert [tick["tick"] for tick in found] == [[1], [2], [3], [4], [5], [6]]
    assert [tick["row"] for tick in found] == [[0]] * 6
    assert [tick["certainty"][0] for tick in found] == pytest.approx(RISING[:6])
    assert [tick["prediction"] for tick in found] == [[[0, k, 0]] for k in range(1, 7)]
    assert [tick["leading"] for tick in found] == [[[1]]] * 6
    assert [tick["place"] for tick in found] == [[[float(k)]] for k in range(6)]
    assert {tick.id for tick in ticks} == {"mine"}
    assert not any(tick.parameters["triton_final_response"].bool_param for tick in ticks)
    assert last.parameters["triton_final_response"].bool_param
    del last.parameters["triton_final_response"]
    assert last == whole


async def test_rows_tick_together_and_each_is_answered_as_soon_as_it_is_certain():
    async with scripted_server() as server:
        got = await streamed(server, infer(think(SURE, script(RISING)), every=5))
    found = [columns(response.infer_response) for response in got]
    shown = [("tick" if "tick" in one else "answer" if "row" in one else "all", one.get("row")) for one in found]
    assert shown == [("answer", [0]), ("tick", [1]), ("answer", [1]), ("all", None)]
    assert found[-1]["ticks_used"] == [1, 6]
    async with scripted_server() as server:
        both = await streamed(server, infer(think(SLOW, SLOW)))
    assert columns(both[0].infer_response)["row"] == [0, 1]


async def test_ticks_with_large_details_go_out_apart(monkeypatch):
    monkeypatch.setattr("serving.inference.responses._LARGE", 4)  # bytes, as many as a place takes
    async with scripted_server() as server:
        got = await streamed(server, infer(think(SLOW, SLOW), details="place"))
    found = [columns(response.infer_response) for response in got]
    assert [one["row"] for one in found if "place" in one] == [[0], [1]] * TICKS


@pytest.mark.parametrize("empty", [False, True])
async def test_the_end_of_a_stream_is_marked_on_the_answer_or_after_it(empty):
    request = infer(think(SURE), every=0, triton_enable_empty_final_response=empty)
    async with scripted_server() as server:
        got = await streamed(server, request)
    assert [(final(response), len(response.infer_response.outputs) > 0) for response in got] == (
        [(False, True), (True, False)] if empty else [(True, True)]
    )


async def test_many_requests_share_a_call_and_each_fails_alone():
    good = [infer(think(SURE, SLOW, request_id=str(k)), every=0, outputs=("ticks_used",)) for k in range(20)]
    bad = [
        infer(think(SURE, request_id="bad"), max_ticks=99),
        oip.ModelInferRequest(model_name="other", id="unknown"),
        infer(think(SURE), every=-1),
        infer(think(SURE, request_id="long" * 100_000)),
    ]
    async with scripted_server(max_stream_requests=4) as server:
        got = await streamed(server, *good[:10], *bad, *good[10:])
    failed = {
        response.infer_response.id: (response.infer_response.parameters["status"].string_param, response.error_message)
        for response in got
        if response.error_message
    }
    assert failed["bad"] == (
        "INVALID_ARGUMENT",
        "stop.max_ticks: got 99, expected 1 to 8, the tick cap of script/1",
    )
    assert failed["unknown"] == ("NOT_FOUND", "no model 'other'; served are script")
    assert "'every': got -1" in failed[""][1]
    assert "request_id: got 400000 characters" in failed[("long" * 64)][1], "repeated in part"
    whole = {response.infer_response.id: response for response in got if final(response) and not response.error_message}
    assert whole.keys() == {str(k) for k in range(20)}
    assert all(columns(one.infer_response) == {"ticks_used": [1, TICKS]} for one in whole.values())


def changed(message: oip.ModelInferRequest, **fields: Any) -> oip.ModelInferRequest:
    """A request with its first input changed, or the bytes of it."""
    for name, value in fields.items():
        if name == "shape":
            message.inputs[0].shape[:] = value
        elif name == "data":
            message.raw_input_contents[0] = value
        else:
            setattr(message.inputs[0], name, value)
    return message


def asked(**fields: Any) -> oip.ModelInferRequest:
    message = infer(think(SURE))
    message.MergeFrom(oip.ModelInferRequest(**fields))
    return message


OUTPUT = oip.ModelInferRequest.InferRequestedOutputTensor


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [
        pytest.param(oip.ModelInferRequest(), NOT_FOUND, r"no model ''; served are script", id="nothing"),
        pytest.param(asked(model_version="7"), NOT_FOUND, r"no version 7 of model 'script'", id="unknown version"),
        pytest.param(asked(model_version="newest"), INVALID, r"model version: got 'newest', expected", id="no version"),
        pytest.param(asked(model_version="0"), INVALID, r"got '0', expected a whole number from 1", id="version 0"),
        pytest.param(
            changed(infer(think(SURE)), name="x"), INVALID, r"got 'x', expected the inputs of", id="wrong name"
        ),
        pytest.param(changed(infer(think(SURE)), shape=[1, 9]), INVALID, r"\[1, 9\], expected \[rows, 8\]", id="shape"),
        pytest.param(changed(infer(think(SURE)), shape=[]), INVALID, r"certainties.*rows, 8", id="no shape"),
        pytest.param(changed(infer(think(SURE)), shape=[-1, 8]), INVALID, r"-1.*1 to 16", id="negative rows"),
        pytest.param(changed(infer(think(SURE)), shape=[2**62, 8]), INVALID, r"1 to 16", id="absurd rows"),
        pytest.param(changed(infer(think(SURE)), datatype="FP64"), INVALID, r"'FP64', expected FP32", id="datatype"),
        pytest.param(changed(infer(think(SURE)), data=b"123"), INVALID, r"3 bytes, expected 32 bytes", id="bytes"),
        pytest.param(
            changed(infer(think(SURE)), data=np.full(TICKS, np.nan, "<f4").tobytes()), INVALID, r"got nan", id="NaN"
        ),
        pytest.param(infer(think(*[SURE] * 17)), INVALID, r"rows: got 17, expected 1 to 16", id="more than max_rows"),
        pytest.param(
            infer(think(SURE), every=2), INVALID, r"every.*ModelStreamInfer alone", id="ticks of one response"
        ),
        pytest.param(infer(think(SURE), certainty_threshold=1.5), INVALID, r"got 1\.5, expected a cert", id="above 1"),
        pytest.param(infer(think(SURE), temperature=1.5), INVALID, r"'temperature', expected none", id="no chain"),
        pytest.param(infer(think(SURE), sequence_id=3), INVALID, r"parameters: got 'sequence_id'", id="no parameter"),
        pytest.param(
            infer(think(SURE), outputs=("text",)), INVALID, r"outputs: got 'text', expected of", id="no output"
        ),
        pytest.param(
            infer(think(SURE), outputs=("certainty", "certainty")), INVALID, r"'certainty' twice", id="an output twice"
        ),
        pytest.param(
            asked(outputs=[OUTPUT(name="certainty", parameters={"classification": oip.InferParameter(int64_param=2)})]),
            INVALID,
            r"output 'certainty', parameters: got 'classification'",
            id="another form of an output",
        ),
        pytest.param(infer(think(SURE, request_id="i" * 300)), INVALID, r"request_id: got 300 char", id="a long id"),
    ],
)
async def test_bad_requests_are_refused_as_think_refuses_them(message, code, said):
    async with scripted_server() as server:
        refused = await error(server.inference.ModelInfer(message))
        assert refused.code() is code
        assert re.search(said, refused.details()), refused.details()
        assert columns(await server.inference.ModelInfer(infer(think(SURE))))["ticks_used"] == [1], "the next is served"
        found = code is INVALID and "version" not in refused.details()
        assert [refusal[:2] for refusal in server.refusals] == [("script", 1) if found else ("", 0)]


async def test_rows_whose_outputs_fit_in_no_message_are_refused_before_anything_is_thought():
    async with scripted_server(max_bytes=64) as server:
        refused = await error(server.inference.ModelInfer(infer(think(SURE, SURE))))
        assert refused.code() is INVALID
        assert re.search(r"outputs of 2 rows: got 74 bytes, expected at most 64", refused.details()), refused.details()
        assert server.backend.num_ticks == 0
        small = await server.inference.ModelInfer(infer(think(SURE, SURE), outputs=("prediction",)))
    assert columns(small)["prediction"] == [[1, 0, 0]] * 2


@pytest.mark.parametrize(
    "method", ["ModelInfer", "ModelStreamInfer", "ModelMetadata", "ModelReady", "ModelStatistics", "RepositoryIndex"]
)
async def test_bytes_that_are_no_message_are_an_invalid_argument(method, caplog):
    async with scripted_server() as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            path = f"/inference.GRPCInferenceService/{method}"
            if method == "ModelStreamInfer":
                stream = channel.stream_stream(path, None, oip.ModelStreamInferResponse.FromString)(iter([b"\xff\xff"]))
                assert ["not a message" in response.error_message async for response in stream] == [True]
            else:
                assert await channel.unary_unary(path, None, None)(b"\xff\xff").code() is INVALID
        assert columns(await server.inference.ModelInfer(infer(think(SURE))))
    assert not caplog.records, "what a stranger sends is no news"


async def test_a_full_queue_says_when_to_come_back():
    async with scripted_server(bundle=UNBOUNDED, num_slots=1, max_waiting=2, seconds_per_tick=0.02) as server:
        running = asyncio.ensure_future(server.inference.ModelInfer(endless()))
        await until(lambda: server.backend.num_ticks)
        waiting = asyncio.ensure_future(server.inference.ModelInfer(endless(2)))
        await until(lambda: server.num_waiting == 2)
        refused = await error(server.inference.ModelInfer(infer(think(SURE))))
        (late,) = await streamed(server, infer(think(SURE)))
        running.cancel()
        waiting.cancel()
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = Status.FromString(dict(refused.trailing_metadata())["grpc-status-details-bin"])
    assert status.details[0].Unpack(RetryInfo())
    assert late.infer_response.parameters["retry_after_seconds"].double_param > 0
    assert final(late)


async def test_leaving_frees_the_slots():
    async with scripted_server(bundle=UNBOUNDED, seconds_per_tick=0.02) as server:
        call = server.inference.ModelInfer(endless(2))
        stream = server.inference.ModelStreamInfer(iter([endless()]))
        await until(lambda: server.num_requests == 2)
        assert (await stream.read()).infer_response.outputs
        call.cancel()
        stream.cancel()
        await until(lambda: server.ended().count("CANCELLED") == 3)
        assert server.runner.engine.idle


async def test_a_deadline_brings_the_best_answer_so_far():
    for message, of_call in ((infer(think(SLOW)), 60), (infer(think(SLOW), timeout=60_000_000), None)):
        async with scripted_server(margin=2.0) as server:
            server.put_forward(59.0, after=3)
            got = columns(await server.inference.ModelInfer(message, timeout=of_call))
        assert (got["stop_reason"], got["ticks_used"]) == (["DEADLINE"], [3])


async def test_rows_that_never_ticked_have_no_numbers():
    async with scripted_server(num_slots=1, margin=2.0) as server:
        server.put_forward(59.0, after=3)
        request = infer(think(*[SLOW] * 3), timeout_seconds=60.0, leading=1)
        got = columns(await server.inference.ModelInfer(request))
    assert got["answer_tick"][-1] == 0
    assert got["abstained"][-1]
    assert np.isnan(got["prediction"][-1]).all()
    assert (got["leading"][0], got["leading"][-1]) == ([0], [-1])


async def test_a_failing_backend_is_internal_and_counted():
    async with scripted_server() as server:
        server.backend.fail_next_tick = True
        assert (await error(server.inference.ModelInfer(infer(think(SLOW))))).code() is grpc.StatusCode.INTERNAL
        server.backend.fail_next_tick = True
        (failed,) = await streamed(server, infer(think(SLOW, request_id="mine"), every=0))
        assert (failed.infer_response.id, failed.infer_response.parameters["status"].string_param) == (
            "mine",
            "INTERNAL",
        )
        (found,) = (await server.inference.ModelStatistics(oip.ModelStatisticsRequest(name="script"))).model_stats
    assert found.inference_stats.fail.count == 2
    assert found.inference_stats.success.count == 0


async def test_the_model_is_described():
    async with scripted_server() as server:
        live = await server.inference.ServerLive(oip.ServerLiveRequest())
        ready = await server.inference.ServerReady(oip.ServerReadyRequest())
        told = await server.inference.ServerMetadata(oip.ServerMetadataRequest())
        model = await server.inference.ModelMetadata(oip.ModelMetadataRequest(name="script"))
        config = (await server.inference.ModelConfig(oip.ModelConfigRequest(name="script", version="1"))).config
        unknown = await error(server.inference.ModelMetadata(oip.ModelMetadataRequest(name="other")))
    assert (live.live, ready.ready, told.name, unknown.code()) == (True, True, "ctm-serving", NOT_FOUND)
    assert "statistics" in told.extensions
    assert (model.name, list(model.versions), model.platform) == ("script", ["1"], "ctm_scripted")
    inputs = {one.name: (one.datatype, list(one.shape)) for one in model.inputs}
    outputs = {one.name: (one.datatype, list(one.shape)) for one in model.outputs}
    assert inputs["predictions"] == ("FP32", [-1, 8, 3])
    assert outputs == {
        "prediction": ("FP32", [-1, 3]),
        "certainty": ("FP32", [-1]),
        "ticks_used": ("INT64", [-1]),
        "answer_tick": ("INT64", [-1]),
        "stop_reason": ("BYTES", [-1]),
        "abstained": ("BOOL", [-1]),
        "energy": ("FP32", [-1]),
    }
    assert (config.name, config.max_batch_size, config.version_policy.latest.num_versions) == ("script", 16, 1)
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output][:2] == [
        ("prediction", oip.TYPE_FP32, [3]),
        ("certainty", oip.TYPE_FP32, []),
    ]
    assert config.parameters["certainty_threshold"].string_value == "0.9"
    assert not config.model_transaction_policy.decoupled


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("script", "", True), ("script", "1", True), ("script", "2", False), ("other", "", False), ("", "", False)],
)
async def test_a_model_is_ready_when_it_takes_requests(name, version, ready):
    async with scripted_server() as server:
        request = oip.ModelReadyRequest(name=name, version=version)
        assert (await server.inference.ModelReady(request)).ready is ready
        await server.runner.drain(1.0)
        assert not (await server.inference.ModelReady(request)).ready


async def test_statistics_are_what_the_engine_did():
    async with scripted_server(num_slots=2) as server:
        await server.inference.ModelInfer(infer(think(SLOW, SLOW)))
        [_ async for _ in server.stub.Think(think(script(RISING)))]
        await streamed(server, infer(think(SURE)), infer(think(SURE), max_ticks=99))
        every = await server.inference.ModelStatistics(oip.ModelStatisticsRequest())
        (found,) = (
            await server.inference.ModelStatistics(oip.ModelStatisticsRequest(name="script", version="1"))
        ).model_stats
        unknown = await error(server.inference.ModelStatistics(oip.ModelStatisticsRequest(name="other")))
        ticks = sum(report.num_ticked for report, _ in server.reports)
        steps = sum(report.tick_seconds is not None for report, _ in server.reports)
        seconds = sum(report.tick_seconds or 0 for report, _ in server.reports)
    assert list(every.model_stats) == [found]
    assert unknown.code() is NOT_FOUND
    assert (found.name, found.version, found.inference_count, found.execution_count) == ("script", "1", 4, steps)
    counts = found.inference_stats
    assert (counts.success.count, counts.fail.count) == (3, 1)
    assert counts.queue.count == counts.compute_input.count == counts.compute_infer.count == 3
    parts = counts.queue.ns + counts.compute_input.ns + counts.compute_infer.ns
    assert parts == pytest.approx(counts.success.ns, abs=10), "a row waits, is encoded, thinks: and that is all"
    assert sum(batch.batch_size * batch.compute_infer.count for batch in found.batch_stats) == ticks
    assert sum(batch.compute_infer.ns for batch in found.batch_stats) == pytest.approx(1e9 * seconds, rel=1e-6)
    assert found.last_inference > 1_700_000_000_000


@dataclass(frozen=True)
class Stored:
    name: str
    version: int
    state: str
    reason: str = ""


@dataclass
class ScriptedLibrary:
    """Notes what it is told."""

    told: list[str] = field(default_factory=list)

    async def load(self, name: str) -> None:
        self.told.append(f"load {name}")
        if name == "absent":
            raise UnknownModel("no model 'absent' in the store")
        if name == "spoilt":
            raise BundleRefused("bundle spoilt/1: tick.onnx is another file")

    async def unload(self, name: str) -> None:
        self.told.append(f"unload {name}")

    def index(self) -> list[Stored]:
        return [Stored("script", 1, "READY"), Stored("spoilt", 1, "UNAVAILABLE", "tick.onnx")]


async def test_the_repository_is_listed_and_left_alone_unless_its_control_is_enabled():
    library = ScriptedLibrary()
    async with scripted_server(library=library) as server:
        every = (await server.inference.RepositoryIndex(oip.RepositoryIndexRequest())).models
        ready = (await server.inference.RepositoryIndex(oip.RepositoryIndexRequest(ready=True))).models
        refused = [
            await error(server.inference.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="script"))),
            await error(server.inference.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="script"))),
        ]
    assert [(one.name, one.version, one.state, one.reason) for one in every] == [
        ("script", "1", "READY", ""),
        ("spoilt", "1", "UNAVAILABLE", "tick.onnx"),
    ]
    assert [one.name for one in ready] == ["script"]
    assert all(one.code() is grpc.StatusCode.UNIMPLEMENTED and "repository_control" in one.details() for one in refused)
    assert not library.told


PARAMETERS = {"config": oip.ModelRepositoryParameter(string_param="{}")}


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        pytest.param({"model_name": "script"}, None, "script", id="as Triton's clients name it"),
        pytest.param({"repository_name": "script"}, None, "script", id="as KServe's do, in the same field"),
        pytest.param({"model_name": "absent"}, NOT_FOUND, "no model 'absent'", id="not there"),
        pytest.param({"model_name": "spoilt"}, grpc.StatusCode.FAILED_PRECONDITION, "tick.onnx", id="not sound"),
        pytest.param({}, INVALID, "model_name: got none", id="no name"),
        pytest.param({"model_name": "a", "repository_name": "b"}, INVALID, "repository_name: got 'b'", id="repository"),
        pytest.param({"model_name": "a", "parameters": PARAMETERS}, INVALID, "parameters: got 'config'", id="config"),
    ],
)
async def test_a_model_is_loaded_by_name_and_what_cannot_be_is_said(request_, code, said):
    library = ScriptedLibrary()
    async with scripted_server(library=library, control=True) as server:
        call = server.inference.RepositoryModelLoad(oip.RepositoryModelLoadRequest(**request_))
        if code is None:
            assert (await call).model_name == said
            unload = oip.RepositoryModelUnloadRequest(
                **request_, parameters={"unload_dependents": oip.ModelRepositoryParameter(bool_param=False)}
            )
            await server.inference.RepositoryModelUnload(unload)
            assert library.told == [f"load {said}", f"unload {said}"]
        else:
            refused = await error(call)
            assert refused.code() is code
            assert said in refused.details()
