"""Replicas of a real `ctm-serve`, each of which can be stopped, killed and started again on its ports."""

import asyncio
import json
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0
STOP_SECONDS = 120.0


class Replica:
    """One server. Its ports are any free ones at first, and the same again whenever it is started anew."""

    def __init__(self, *arguments: str, address: str = "127.0.0.1:0") -> None:
        self._arguments = arguments
        self._address, self._http_address = address, "127.0.0.1:0"
        self._process: Process | None = None
        self._log: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return int(self._address.rpartition(":")[2])

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "serving.cli", "--log-format", "json", "--store", str(ROOT / "model_store")),
            *("--address", self._address, "--http-address", self._http_address, *self._arguments),
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=DEVNULL,
            stderr=PIPE,
        )
        serving: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self._log = asyncio.create_task(self._follow(self._process, serving))
        async with asyncio.timeout(START_SECONDS):
            entry = await serving
        self._address, self._http_address = entry["address"], f"127.0.0.1:{entry['http_port']}"

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None, "only a replica that was started gets signals"
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status, once it has one."""
        assert self._process is not None, "only a replica that was started ends"
        async with asyncio.timeout(STOP_SECONDS):
            return await self._process.wait()

    async def thoughts(self) -> int:
        """How many it has ended since it was started, by its own count."""
        async with aiohttp.ClientSession() as session, session.get(f"http://{self._http_address}/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if re.match(r"ctm_thoughts_total\{", line))

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._log is not None:
            self._log.cancel()
            with suppress(asyncio.CancelledError):
                await self._log

    @staticmethod
    async def _follow(process: Process, serving: "asyncio.Future[dict[str, str]]") -> None:
        """Read the log to its end: a pipe that nobody empties would stop the server."""
        assert process.stderr is not None
        async for line in process.stderr:
            if b'"serving"' in line and not serving.done():
                serving.set_result(json.loads(line))
        if not serving.done():
            serving.set_exception(RuntimeError(f"ctm-serve ended with status {await process.wait()} before it served"))


@asynccontextmanager
async def replicas(number: int, *arguments: str) -> AsyncIterator[list[Replica]]:
    """So many servers with the same settings."""
    fleet = [Replica(*arguments) for _ in range(number)]
    try:
        await asyncio.gather(*(replica.start() for replica in fleet))
        yield fleet
    finally:
        for replica in fleet:
            await replica.close()
