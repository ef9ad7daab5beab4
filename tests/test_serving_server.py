"""The whole server as a process: startup, health, several models, bad bundles, drain."""

import asyncio
import shutil
import signal
import sys
import threading
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from published import publish_copy
from served import launch, served

from protos import ctm_serving_pb2 as pb
from protos import ctm_serving_pb2_grpc as pb_grpc
from serving.backends.load import load_backend
from serving.server import Server
from serving.settings import ServerConfig
from serving.tensors import tensor_message

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def think(rows: int = 1, model: str = "tiny", **fields) -> pb.ThinkRequest:
    features = np.random.default_rng(0).normal(size=(rows, 4, 6)).astype(np.float32)
    return pb.ThinkRequest(model=model, inputs=[tensor_message("features", features)], **fields)


async def answers(stub, request: pb.ThinkRequest) -> list[pb.Answer]:
    return [event.answer async for event in stub.Think(request) if event.HasField("answer")]


@asynccontextmanager
async def running(store: Path, **settings) -> AsyncIterator[Server]:
    """A server in this process."""
    server = Server(ServerConfig(address="127.0.0.1:0", http_address="127.0.0.1:0", store=store, **settings))
    await server.start()
    try:
        yield server
    finally:
        await server.drain()


def channel_to(server: Server) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def test_a_server_thinks_reports_and_drains(tiny_store):
    async with served(tiny_store, "--reflection") as server, grpc.aio.insecure_channel(server.address) as channel:
        stub, health = pb_grpc.ThinkerStub(channel), health_pb2_grpc.HealthStub(channel)
        for service in ("", "ctm.serving.v1.Thinker", "tiny"):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING

        got = await answers(stub, think(rows=3))
        assert sorted(answer.row for answer in got) == [0, 1, 2]
        used = sum(answer.ticks_used for answer in got)

        listed = (await stub.ListModels(pb.ListModelsRequest())).models
        assert [(model.name, model.version, model.backend) for model in listed] == [("tiny", 1, "onnx")]
        manifest = await stub.GetModel(pb.GetModelRequest(model="tiny"))
        assert manifest.outputs[0].name == "prediction"

        assert await get(f"{server.http}/healthz") == (200, "alive\n")
        assert (await get(f"{server.http}/readyz"))[0] == 200
        metrics = (await get(f"{server.http}/metrics"))[1].splitlines()
        assert f'ctm_request_ticks_sum{{model="tiny",version="1"}} {float(used)}' in metrics
        assert sum(float(line.split()[-1]) for line in metrics if line.startswith("ctm_thoughts_total{")) == 3

        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        call = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        names = {service.name for service in (await call.read()).list_services_response.service}
        assert names >= {"ctm.serving.v1.Thinker", "grpc.health.v1.Health"}
        call.cancel()
        assert await server.stop() == 0


async def test_sigterm_ends_a_server_that_still_fetches_its_models():
    code = (
        "import sys, time, serving.server as server\n"
        "from serving.cli import main\n"
        "server.fetch = lambda *_: print('fetching', flush=True) or time.sleep(300)\n"
        "sys.exit(main(['--fetch', 'org/slow', '--address', '127.0.0.1:0', '--http-address', '127.0.0.1:0']))\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=PIPE, stderr=PIPE)
    assert await process.stdout.readline() == b"fetching\n"
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(200):
        _, log = await process.communicate()
    assert (process.returncode, b"stopped before it served" in log) == (0, True)


async def test_sigterm_lets_running_thoughts_finish_and_turns_new_ones_away(tiny_store):
    async with (
        served(tiny_store, "--grace-seconds", "200", "--engine.max-waiting", "4096") as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub, health = pb_grpc.ThinkerStub(channel), health_pb2_grpc.HealthStub(channel)
        long = pb.StopPolicy(disabled=[pb.CERTAIN], max_ticks=16)
        call = stub.ThinkStream()
        for k in range(40):
            await call.write(
                pb.ThinkCommand(think=think(rows=64, request_id=str(k), stop=long, stream=pb.StreamPolicy(every=0)))
            )
        await call.write(pb.ThinkCommand())  # commands are read in order: its failure says that all have arrived
        summaries: dict[str, int] = {}

        async def read_until(end: Callable[[pb.ThinkEvent], bool]) -> None:
            while not end(event := await call.read()):
                if event.HasField("summary"):
                    summaries[event.request_id] = event.summary.ticks_used

        await read_until(lambda event: event.HasField("failure"))
        watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == SERVING  # it watches from now on, however soon the server is done
        server.process.send_signal(signal.SIGTERM)
        while (await watch.read()).status != NOT_SERVING:
            pass
        watch.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await answers(stub, think())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await call.done_writing()
        await read_until(lambda event: event is grpc.aio.EOF)
        assert summaries == {str(k): 64 * 16 for k in range(40)}
        assert await server.stop() == 0


async def test_a_second_signal_ends_the_grace_at_once(tiny_store):
    never = pb.StopPolicy(disabled=[pb.CERTAIN], max_ticks=16)
    quiet = pb.StreamPolicy(every=0)
    slow = ("--grace-seconds", "300", "--engine.num-slots", "2", "--engine.max-waiting", "20000")
    async with served(tiny_store, *slow) as server, grpc.aio.insecure_channel(server.address) as channel:
        call = pb_grpc.ThinkerStub(channel).ThinkStream()
        for k in range(50):
            await call.write(pb.ThinkCommand(think=think(rows=256, request_id=str(k), stop=never, stream=quiet)))
        await call.write(pb.ThinkCommand())
        while not (await call.read()).HasField("failure"):
            pass
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(200):
            while await get(f"{server.http}/readyz") != (503, "shutting down\n"):
                await asyncio.sleep(0.005)
        begin = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        kinds = {"summary": 0, "failure": 0}
        while (event := await call.read()) is not grpc.aio.EOF:
            kind = event.WhichOneof("event")
            kinds[kind] = kinds.get(kind, 0) + 1
            if kind == "failure":
                assert event.failure.code == pb.UNAVAILABLE
        assert kinds["failure"] > 0, "what had not run is turned away"
        assert await server.stop() == 0
        assert time.monotonic() - begin < 200


async def test_two_signals_before_the_drain_has_begun_leave_no_grace(tiny_store, monkeypatch):
    graces: list[float] = []

    async def drain(grace_seconds: float) -> None:
        graces.append(grace_seconds)

    async with running(tiny_store, grace_seconds=300) as server:
        monkeypatch.setattr(server.library.stage, "drain", drain)
        server._on_signal()
        server._on_signal()
    assert graces == [0.0]


async def test_a_server_that_goes_says_so_first_and_takes_requests_for_the_delay(tiny_store):
    async with (
        served(tiny_store, "--drain-delay-seconds", "300") as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub, health = pb_grpc.ThinkerStub(channel), health_pb2_grpc.HealthStub(channel)
        server.process.send_signal(signal.SIGTERM)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="tiny"))
        async for update in watch:
            if update.status == NOT_SERVING:
                break
        watch.cancel()
        assert await get(f"{server.http}/readyz") == (503, "shutting down\n")
        assert len(await answers(stub, think(rows=3))) == 3
        begin = time.monotonic()
        assert await server.stop() == 0, "a second signal ends the delay"
        assert time.monotonic() - begin < 200


async def test_a_connection_that_is_old_takes_no_new_calls_and_ends_those_that_it_has(tiny_store):
    async with running(tiny_store, max_connection_age_seconds=0.5) as server, channel_to(server) as channel:
        stub = pb_grpc.ThinkerStub(channel)
        stream = stub.ThinkStream()
        await stream.write(pb.ThinkCommand(think=think(request_id="before")))
        assert await answered(stream) == "before"
        async with asyncio.timeout(200):
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        assert channel.get_state() == grpc.ChannelConnectivity.IDLE
        assert len(await answers(stub, think(rows=3))) == 3, "over a new connection"
        await stream.write(pb.ThinkCommand(think=think(request_id="after")))
        assert await answered(stream) == "after"
        await stream.done_writing()


async def answered(stream: grpc.aio.StreamStreamCall) -> str:
    """Which request the next summary is of."""
    async for event in stream:
        if event.HasField("summary"):
            return event.request_id
    raise AssertionError(f"no summary: {await stream.code()}")


async def test_a_burst_of_calls_is_served_and_not_cut_off(tiny_store):
    async with served(tiny_store, "--engine.max-waiting", "4096") as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub, asked = pb_grpc.ThinkerStub(channel), think(stream=pb.StreamPolicy(every=0))
            counts = await asyncio.gather(*(answers(stub, asked) for _ in range(2_000)))
        assert [len(got) for got in counts] == [1] * 2_000


async def test_the_side_port_says_starting_while_models_load(tiny_store, monkeypatch):
    loading, go_on = threading.Event(), threading.Event()

    def load_when_told(*arguments: object) -> object:
        loading.set()
        assert go_on.wait(200)
        return load_backend(*arguments)

    monkeypatch.setattr("serving.library.load_backend", load_when_told)
    server = Server(ServerConfig(address="127.0.0.1:0", http_address="127.0.0.1:0", store=tiny_store))
    starting = asyncio.create_task(server.start())
    try:
        await asyncio.to_thread(loading.wait, 200)
        assert await get(f"http://127.0.0.1:{server.http_port}/readyz") == (503, "starting\n")
        assert await get(f"http://127.0.0.1:{server.http_port}/healthz") == (200, "alive\n")
    finally:
        go_on.set()
        await starting
    assert await get(f"http://127.0.0.1:{server.http_port}/readyz") == (200, "ready\n")
    await server.drain()


async def test_an_engine_that_died_makes_the_process_unhealthy_but_not_its_other_models(tiny_store, tmp_path):
    store = tmp_path / "store"
    for name in ("tiny", "other"):
        publish_copy(tiny_store / "tiny" / "1", store, name)
    async with running(store) as server, channel_to(server) as channel:
        stub, health = pb_grpc.ThinkerStub(channel), health_pb2_grpc.HealthStub(channel)
        server.library.models.find("tiny", 0).runner.engine.scheduler.record = None  # an invariant of ours, broken
        with pytest.raises(grpc.aio.AioRpcError, match="engine has failed"):
            await answers(stub, think())
        assert len(await answers(stub, think(model="other"))) == 1
        status = {
            name: (await health.Check(health_pb2.HealthCheckRequest(service=name))).status
            for name in ("", "tiny", "other")
        }
        assert status == {"": NOT_SERVING, "tiny": NOT_SERVING, "other": SERVING}
        for page in ("healthz", "readyz"):
            assert await get(f"http://127.0.0.1:{server.http_port}/{page}") == (
                503,
                "the engine of tiny/1 has failed\n",
            )


async def test_health_follows_what_comes_into_the_store_and_leaves_it(tiny_store, tmp_path):
    store = tmp_path / "store"
    publish_copy(tiny_store / "tiny" / "1", store, "tiny")
    async with running(store, store_poll_seconds=0.05) as server, channel_to(server) as channel:
        stub, health = pb_grpc.ThinkerStub(channel), health_pb2_grpc.HealthStub(channel)
        http = f"http://127.0.0.1:{server.http_port}"

        async def turns(service: str, status: object) -> None:
            watch = health.Watch(health_pb2.HealthCheckRequest(service=service))
            async with asyncio.timeout(200):
                async for update in watch:
                    if update.status == status:
                        break
            watch.cancel()

        publish_copy(tiny_store / "tiny" / "1", store, "late")
        await turns("late", SERVING)
        assert len(await answers(stub, think(model="late"))) == 1
        shutil.rmtree(store / "tiny")
        await turns("tiny", NOT_SERVING)
        with pytest.raises(grpc.aio.AioRpcError, match="no model 'tiny'; served are late") as refused:
            await answers(stub, think())
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await get(f"{http}/readyz"))[0] == 200
        shutil.rmtree(store / "late")
        await turns("", NOT_SERVING)
        assert await get(f"{http}/readyz") == (503, "no model is ready\n")
        assert (await get(f"{http}/healthz"))[0] == 200
        publish_copy(tiny_store / "tiny" / "1", store, "tiny", 2)
        await turns("", SERVING)
        await turns("tiny", SERVING)


async def test_several_models_and_versions_serve_and_bad_bundles_are_refused_by_name(tiny_store, tmp_path):
    store = tmp_path / "store"
    good = tiny_store / "tiny" / "1"
    for version in (1, 2, 10):
        publish_copy(good, store, "tiny", version)
    publish_copy(good, store, "other")
    publish_copy(good, store, "spoilt")
    (store / "spoilt" / "1" / "tick.onnx").write_bytes(b"not a graph")
    publish_copy(good, store, "halfway")
    (store / "halfway" / "1" / "manifest.json").unlink()
    publish_copy(good, store, "newer", format_version=99)

    async with (
        served(store, "--version-policy", "latest:2") as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = pb_grpc.ThinkerStub(channel)
        listed = (await stub.ListModels(pb.ListModelsRequest())).models
        assert [(model.name, model.version) for model in listed] == [("other", 1), ("tiny", 2), ("tiny", 10)]
        summaries = [event.summary async for event in stub.Think(think()) if event.HasField("summary")]
        assert summaries[0].version == 10, "versions are numbers, and 0 asks for the newest"
        assert len(await answers(stub, think(version=2))) == 1
        with pytest.raises(grpc.aio.AioRpcError, match=r"no version 1 of model 'tiny'; served are 2, 10"):
            await answers(stub, think(version=1))
        refusals = [entry["reason"] for entry in server.log if entry["event"] == "bundle refused"]
        for name, file in (("spoilt/1", "tick.onnx"), ("halfway/1", "manifest.json"), ("newer/1", "format_version")):
            assert [reason for reason in refusals if name in reason and file in reason], (name, refusals)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        pytest.param(["--store", "/nonexistent"], 1, "/nonexistent", id="no store"),
        pytest.param(["--models", "absent"], 1, "absent", id="a model that is not there"),
        pytest.param(["--engine.num-slots", "0"], 2, "num_slots", id="a bad setting"),
        pytest.param(["--backend.kind", "torchscript"], 2, "allow_torchscript", id="TorchScript without consent"),
        pytest.param(["--backend.providers", "Abacus"], 1, "Abacus", id="a provider that is not there"),
        pytest.param(["--address", "203.0.113.1:1"], 1, "203.0.113.1:1", id="an address that is not ours"),
    ],
)
async def test_a_server_that_cannot_start_says_why_in_a_line(tiny_store, arguments, status, message):
    process = await launch("--store", tiny_store, *arguments)
    _, stderr = await asyncio.wait_for(process.communicate(), 200)
    assert process.returncode == status
    (line,) = [line for line in stderr.decode().splitlines() if line.startswith("ctm-serve:")]
    assert "Traceback" not in stderr.decode()
    assert message in line


async def answers_of_a_server(store: Path, *arguments: str) -> list[pb.Answer]:
    async with served(store, *arguments) as server, grpc.aio.insecure_channel(server.address) as channel:
        return await answers(pb_grpc.ThinkerStub(channel), think(rows=8))


@pytest.mark.parametrize("kind", ["torchscript", "eager"])
async def test_every_backend_thinks_the_same(tiny_store, kind):
    consent = ["--backend.allow-torchscript"] if kind == "torchscript" else []
    got, expected = [
        await answers_of_a_server(tiny_store, *arguments) for arguments in (("--backend.kind", kind, *consent), ())
    ]
    for one, other in zip(sorted(got, key=lambda a: a.row), sorted(expected, key=lambda a: a.row), strict=True):
        assert (one.ticks_used, one.answer_tick, one.stop_reason) == (
            other.ticks_used,
            other.answer_tick,
            other.stop_reason,
        )
        assert one.certainty == pytest.approx(other.certainty, abs=1e-5)
        np.testing.assert_allclose(
            np.frombuffer(one.prediction.data, "<f4"), np.frombuffer(other.prediction.data, "<f4"), rtol=1e-5, atol=1e-5
        )
