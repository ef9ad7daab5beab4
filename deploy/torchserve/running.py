"""A real TorchServe and a real ctm-serve, each a process on free ports that ends with its block; for tests."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from deploy.torchserve.archive import ROOT

PYTHON = ROOT / ".venv-deploy" / "torchserve" / "bin" / "python"
_READY_SECONDS = 400.0
"""Each worker imports torch, all at once."""


@dataclass(frozen=True, slots=True)
class Reply:
    """To one HTTP request, read to its end."""

    status: int
    headers: Message
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class TorchServe:
    """A running one."""

    ports: Mapping[str, int]
    """By the names that its configuration has for them."""
    keys: Mapping[str, str]
    """By what they open: inference and management."""

    def ask(self, path: str, body: bytes | None = None, *, port: str = "inference", key: str = "inference") -> Reply:
        """Send a request; the key "" is none at all."""
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {self.keys[key]}"
        with closing(HTTPConnection("127.0.0.1", self.ports[f"{port}_address"], timeout=120)) as connection:
            connection.request("GET" if body is None else "POST", path, body, headers)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())

    def predict(self, model: str, request: Mapping[str, Any]) -> tuple[int, Any]:
        """Status and document of a reply that is one."""
        reply = self.ask(f"/predictions/{model}", json.dumps(request).encode())
        return reply.status, reply.document

    def describe(self, model: str, *, customized: bool = False) -> Any:
        """What the management port says of a model; customized, the model is asked as well."""
        path = f"/models/{model}" + ("?customized=true" if customized else "")
        return self.ask(path, port="management", key="management").document[0]


@contextmanager
def torchserve(config: Path, folder: Path, ports: Mapping[str, int], models: list[str]) -> Iterator[TorchServe]:
    """Start TorchServe, and wait until all models are ready.

    Args:
        folder: where it keeps its key, its logs and its temporary files; a short path, as sockets lie there.

    Raises:
        FileNotFoundError: Java or the environment is missing.
        RuntimeError: it did not start.
    """
    if shutil.which("java") is None:
        raise FileNotFoundError("there is no java; Debian's package openjdk-17-jre-headless brings it")
    if not PYTHON.exists():
        raise FileNotFoundError(f"there is no {PYTHON}; `make test-deploy` makes it")
    (folder / "tmp").mkdir(parents=True)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "TS_"))
    }
    environment |= {"TEMP": str(folder / "tmp"), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    command = [str(PYTHON.with_name("torchserve")), "--start", "--foreground", "--ncs", "--ts-config", str(config)]
    with (folder / "out.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield _when_ready(process, folder, ports, models)
    finally:
        _end_group(process)


def _when_ready(
    process: subprocess.Popen[bytes], folder: Path, ports: Mapping[str, int], models: list[str]
) -> TorchServe:
    key_file, waiting = folder / "key_file.json", list(models)
    deadline = time.monotonic() + _READY_SECONDS
    server: TorchServe | None = None
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.5)
        try:
            if server is None:
                found = json.loads(key_file.read_text())
                server = TorchServe(ports, {name: found[name]["key"] for name in ("inference", "management")})
            while waiting and _is_ready(server, waiting[-1]):
                waiting.pop()
        except (OSError, ValueError, KeyError):  # not there yet, or half written
            continue
        if not waiting:
            return server
    raise RuntimeError(f"TorchServe is not ready for {waiting or models}:\n{(folder / 'out.log').read_text()[-4000:]}")


def _is_ready(server: TorchServe, model: str) -> bool:
    workers = server.describe(model)["workers"]
    return bool(workers) and all(worker["status"] == "READY" for worker in workers)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End Java and its workers, which the process that started them would leave behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            for _ in range(40):
                time.sleep(0.2)
                process.poll()
                os.killpg(process.pid, 0)  # raises when nobody is left
        except ProcessLookupError:
            return


@contextmanager
def ctm_serve(*arguments: str) -> Iterator[str]:
    """Start the project's own server on the shipped store; gives its address."""
    command = [sys.executable, "-m", "serving.cli", "--log-format", "json", "--store", str(ROOT / "model_store")]
    command += ["--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None, "it is a pipe"
            lines = []
            for line in process.stderr:
                lines.append(line)
                if match := re.search(r'"address": "([^"]+)"', line):
                    yield match[1]
                    break
            else:
                raise RuntimeError(f"ctm-serve did not start:\n{''.join(lines)[-2000:]}")
        finally:
            process.terminate()
            process.communicate(timeout=60)
