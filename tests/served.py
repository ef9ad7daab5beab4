"""A real `ctm-serve` process on free ports."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Served:
    """A running server."""

    process: Process
    address: str = ""
    http: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)

    async def follow(self) -> None:
        """Read the log until the server serves, or ends."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            if not line.startswith(b"{"):
                continue  # gRPC's core writes there too
            entry = json.loads(line)
            self.log.append(entry)
            if entry["event"] == "serving":
                self.address, self.http = entry["address"], f"http://127.0.0.1:{entry['http_port']}"
                return

    async def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(200):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode


async def launch(*arguments: str | Path) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serving.cli", "--log-format", "json"),
        *("--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", *map(str, arguments)),
        stdout=PIPE,
        stderr=PIPE,
    )


@asynccontextmanager
async def served(store: Path, *arguments: str | Path) -> AsyncIterator[Served]:
    server = Served(await launch("--store", store, *arguments))
    try:
        async with asyncio.timeout(200):
            await server.follow()
        yield server
    finally:
        await server.stop()
