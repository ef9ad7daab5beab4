"""Callers who balance for themselves over the addresses of a name, as a headless Service has them; no proxy between."""

import asyncio
import signal

import pytest
from callers import callers, spread_evenly
from replicas import Replica, replicas

from serving.client import AsyncClient

pytestmark = pytest.mark.timeout(900)


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
