"""A real `ctm-serve` in a process of its own, for as long as it is measured."""

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_START_SECONDS = 120.0
_STOP_SECONDS = 15.0


class ServerProcess:
    """Listens on free ports, and is ready when `__enter__` returns.

    Args:
        settings: further arguments of `ctm-serve`.
    """

    def __init__(self, store: Path, model: str, settings: Sequence[str] = ()) -> None:
        self._command = [
            *(sys.executable, "-m", "serving.cli"),
            *("--store", str(store), "--models", model),
            *("--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"),
            *("--log-format", "json", *settings),
        ]
        self.address = self.metrics = ""
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        timer = threading.Timer(_START_SECONDS, self._process.kill)
        timer.start()
        try:
            self._read_ports()
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
        # Whoever writes into a full pipe waits: read on for as long as the server lives.
        self._reader = threading.Thread(target=self._drain_log, daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """SIGTERM, and patience while it drains."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._reader is not None:
            self._reader.join()
        assert self._process.stderr is not None, "it was asked for"
        self._process.stderr.close()

    def _read_ports(self) -> None:
        """The server's log says where it listens."""
        assert self._process.stderr is not None, "it was asked for"
        said = []
        for line in self._process.stderr:
            said.append(line)
            if not line.startswith("{"):
                continue
            entry = json.loads(line)
            if entry.get("event") == "serving":
                self.address = entry["address"]
                self.metrics = f"http://127.0.0.1:{entry['http_port']}/metrics"
                return
        raise RuntimeError("ctm-serve did not start: " + "".join(said)[-2000:])

    def _drain_log(self) -> None:
        assert self._process.stderr is not None, "it was asked for"
        for line in self._process.stderr:
            if '"level": "error"' in line:
                sys.stderr.write(line)
