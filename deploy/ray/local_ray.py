"""A Ray of this machine alone for the test, on free ports; and patience, where Ray has little of its own."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv-deploy/ray/bin"
_STARTS = 4
"""A raylet that has not registered in half a minute is given up by Ray itself, however slow the machine."""

_PATIENCE = {
    "RAY_agent_register_timeout_ms": "600000",
    "RAY_raylet_start_wait_time_s": "600",
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_gcs_rpc_server_connect_timeout_s": "120",
    "RAY_health_check_timeout_ms": "120000",
    "RAY_worker_niceness": "0",  # 15 otherwise: beside anything else they hardly start
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
}


@contextmanager
def running_ray() -> Iterator[dict[str, str]]:
    """The environment in which Ray's drivers and commands find it."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # its paths must be short
        environment = {
            **os.environ,
            **_PATIENCE,
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",  # loopback alone, and no token is left in the home folder
            "OMP_NUM_THREADS": "1",
        }
        log = Path(folder, "head.log")
        for attempt in range(_STARTS):
            port, *others = free_ports(5)
            process = _head(port, others, Path(folder, str(attempt)), log, environment)
            try:
                if _started(process, log):
                    yield environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
                    return
            finally:
                _end(process)
        raise AssertionError(f"no Ray in {_STARTS} attempts:\n{log.read_text()[-3000:]}")


def _head(
    port: int, others: list[int], folder: Path, log: Path, environment: dict[str, str]
) -> "subprocess.Popen[bytes]":
    # Agents whose ports are told need not have started when the raylet begins.
    names = (
        "dashboard-agent-grpc-port",
        "dashboard-agent-listen-port",
        "runtime-env-agent-port",
        "metrics-export-port",
    )
    command = [
        *(BIN / "ray", "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=false"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", "--object-store-memory=100000000"),
        *(f"--{name}={number}" for name, number in zip(names, others, strict=True)),
        f"--temp-dir={folder}",
    ]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=ROOT)


def _started(process: "subprocess.Popen[bytes]", log: Path) -> bool:
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if "Ray runtime started" in log.read_text():
            return True
        time.sleep(0.5)
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """`ray start --block` takes its children along."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
