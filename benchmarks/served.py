"""Arms c, d and g: the server through gRPC, asked by a client in another process."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.arm import IN_FLIGHT
from benchmarks.load import from_json
from benchmarks.server import ServerProcess
from benchmarks.statistics import Slice

WAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "c": ("this server, Think, answers only", ()),
    "d": ("this server, Think, every tick streamed", ("--every-tick",)),
    "g": ("this server, ThinkStream, answers only", ("--one-call",)),
}
"""Title and further arguments of the load generator, by the arm's key."""

_SPARE_SECONDS = 60.0


class Served:
    """One way to ask a running server, a fresh client for each slice.

    Args:
        workload: a file that `Workload.save` wrote; slices are written beside it.
    """

    def __init__(self, key: str, server: ServerProcess, workload: Path, setting: str) -> None:
        self.key, self.setting = key, setting
        self.title, self._arguments = WAYS[key]
        self._server, self._workload = server, workload
        self._next = 0

    def run(self, seconds: float) -> Slice:
        output = self._workload.with_name(f"slice_{self.key}.json")
        command = [
            *(sys.executable, "-m", "benchmarks.load"),
            *("--address", self._server.address, "--metrics", self._server.metrics),
            *("--workload", str(self._workload), "--output", str(output)),
            *("--first-row", str(self._next)),
            *("--concurrency", str(IN_FLIGHT), "--seconds", str(seconds), *self._arguments),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _SPARE_SECONDS, check=False)
        if done.returncode:
            raise RuntimeError(f"the load generator failed: {done.stderr[-2000:]}")
        part = from_json(json.loads(output.read_text()))
        self._next += part.thoughts
        return part
