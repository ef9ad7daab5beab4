"""Callers who balance for themselves over the addresses of a name, as a headless Service has them; no proxy between."""

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from callers import callers, spread_evenly
from replicas import ROOT, Replica, replicas

from serving.client import AsyncClient

pytestmark = pytest.mark.timeout(900)

PART = ROOT / ".venv-deploy" / "envoy" / "bin"


@contextmanager
def name_server(addresses: Path) -> Iterator[str]:
    """HOST:PORT of a name server that knows the addresses of a file."""
    command = [PART / "python", Path(__file__).with_name("names.py"), addresses]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


async def test_nothing_is_lost_when_a_replica_is_stopped_and_it_is_asked_again_when_it_is_back():
    async with replicas(3, "--models", "mnist", "--drain-delay-seconds", "10") as fleet:
        addresses = "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in fleet)
        async with callers(9, lambda: AsyncClient(addresses, balance=True)) as load:
            first, second, third = fleet

            async def evenly(*among: Replica) -> None:
                async def counts() -> list[int]:
                    return [await replica.thoughts() for replica in among]

                await spread_evenly(counts, load, requests=60 * len(among))

            await evenly(*fleet)

            first.send(signal.SIGTERM)
            assert await first.ended() == 0
            await evenly(second, third)
            assert load.failed == [], "no request was refused or lost"

            await first.start()
            async with asyncio.timeout(240):
                while await first.thoughts() == 0:  # connections are made again after a while
                    await asyncio.sleep(0.5)
            await evenly(*fleet)
            assert load.failed == []


async def test_a_replica_that_is_added_is_asked_soon_by_clients_that_stay_connected(tmp_path):
    addresses = tmp_path / "addresses"
    addresses.write_text("127.0.0.1")
    arguments = ("--models", "mnist", "--max-connection-age-seconds", "2")
    async with replicas(1, *arguments) as fleet:
        (first,) = fleet
        # A name has one port for all: the second replica has its own address.
        fleet.append(second := Replica(*arguments, address=f"127.0.0.2:{first.port}"))
        with name_server(addresses) as names:
            name = f"dns://{names}/replicas.test:{first.port}"
            async with callers(6, lambda: AsyncClient(name, balance=True)) as load:
                await load.until(30)
                await second.start()
                await load.until(30)
                assert await second.thoughts() == 0, "the name does not have it yet"
                addresses.write_text("127.0.0.1\n127.0.0.2")
                async with asyncio.timeout(240):
                    while await second.thoughts() == 0:  # gRPC asks for a name's addresses every 30 s at most
                        await asyncio.sleep(0.5)

                async def counts() -> list[int]:
                    return [await replica.thoughts() for replica in fleet]

                await spread_evenly(counts, load, requests=120)
                assert load.failed == []
