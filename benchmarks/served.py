"""Arms c, d and g: the server through gRPC, asked by a client in another process."""

import json
import subprocess
import sys
from collections.abc import Sequence
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

_ROOT = Path(__file__).resolve().parent.parent
_SPARE_SECONDS = 90.0


class Served:
    """One way to ask a running server, a fresh client for each slice.

    Args:
        workload: a file that `Workload.save` wrote.
    """

    def __init__(self, key: str, server: ServerProcess, workload: Path, setting: str) -> None:
        self.key, self.setting = key, setting
        self.title, self._arguments = WAYS[key]
        self._server, self._workload = server, workload
        self._next = 0

    def run(self, seconds: float) -> Slice:
        arguments = ["--first-row", str(self._next), "--concurrency", str(IN_FLIGHT), "--seconds", str(seconds)]
        part = put_load(self._server, self._workload, [*arguments, *self._arguments], seconds)
        self._next += part.thoughts
        return part


def put_load(server: ServerProcess, workload: Path, arguments: Sequence[str], seconds: float) -> Slice:
    """Run the load generator in a process of its own.

    Args:
        workload: a file that `Workload.save` wrote; the measure is written beside it.
        arguments: further ones of `benchmarks.load`.
        seconds: that it takes at least, for noticing when it hangs.

    Raises:
        RuntimeError: it failed; says how.
    """
    output = workload.with_name("slice.json")
    command = [
        *(sys.executable, "-m", "benchmarks.load"),
        *("--address", server.address, "--metrics", server.metrics),
        *("--workload", str(workload), "--output", str(output), *arguments),
    ]
    # The benchmarks are not installed: they run from the project's folder.
    done = subprocess.run(
        command, cwd=_ROOT, capture_output=True, text=True, timeout=seconds + _SPARE_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr[-2000:]}")
    return from_json(json.loads(output.read_text()))
