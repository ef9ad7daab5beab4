"""A Prometheus of one's own, with the rules that ship, on a free port, for as long as it is needed."""

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.prometheus.asked import Prometheus

HERE = Path(__file__).resolve().parent

_START_SECONDS = 120.0
_STOP_SECONDS = 30.0
_LISTENING = re.compile(r'msg="Listening on" address=(\S+)')


class LocalPrometheus:
    """Watches one server; ready when `__enter__` returns, in `asked`.

    Args:
        target: HOST:PORT of the server's `/metrics`.
        folder: where its configuration and its data go.
        interval: how often it scrapes and evaluates; otherwise all is as `prometheus.yml` says.
    """

    def __init__(self, target: str, folder: Path, *, interval: str = "3s") -> None:
        self._folder = folder
        self._reader: threading.Thread | None = None
        for rules in HERE.glob("*.rules.yml"):
            shutil.copy(rules, folder)
        shipped = (HERE / "prometheus.yml").read_text()
        (folder / "prometheus.yml").write_text(shipped.replace("15s", interval).replace("server:8080", target))

    def __enter__(self) -> Self:
        program = shutil.which("prometheus")
        if program is None:
            raise FileNotFoundError("there is no `prometheus` here: Debian's package prometheus brings it")
        self._process = subprocess.Popen(
            [
                *(program, "--config.file=prometheus.yml", "--storage.tsdb.path=data"),
                "--web.listen-address=127.0.0.1:0",
            ],
            cwd=self._folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        timer = threading.Timer(_START_SECONDS, self._process.kill)
        timer.start()
        try:
            self.asked = Prometheus(f"http://{self._address()}")
            # Whoever writes into a full pipe waits: read on for as long as it lives.
            self._reader = threading.Thread(target=self._drain_log, daemon=True)
            self._reader.start()
            self.wait(Prometheus.ready, "prometheus is ready", within=_START_SECONDS)
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """SIGTERM, and patience while it writes what it knows."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stderr is not None, "it was asked for"
        if self._reader is not None:
            self._reader.join()
        self._process.stderr.close()

    def wait(self, until: Callable[[Prometheus], bool], what: str, *, within: float = 180.0) -> None:
        """Look until something is so.

        Raises:
            TimeoutError: it did not become so within that many seconds; says `what`.
        """
        end = time.monotonic() + within
        while time.monotonic() < end:
            if until(self.asked):
                return
            time.sleep(0.5)
        raise TimeoutError(f"not within {within:g} seconds: {what}")

    def _address(self) -> str:
        assert self._process.stderr is not None, "it was asked for"
        said = []
        for line in self._process.stderr:
            said.append(line)
            if found := _LISTENING.search(line):
                return found[1]
        raise RuntimeError("prometheus did not start: " + "".join(said)[-2000:])

    def _drain_log(self) -> None:
        assert self._process.stderr is not None, "it was asked for"
        for _ in self._process.stderr:
            pass
