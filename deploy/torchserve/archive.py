"""A bundle as a TorchServe archive, and the configuration of a TorchServe that serves such archives.

    NAME.mar           handler.py, model-config.json, handler-requirements.txt,
                       deploy/torchserve/, serving/, protos/, bundle/NAME/VERSION/
    config.properties  loopback, tokens wanted, the archives beside it
    metrics.yaml       TorchServe's own metrics, and ours

An archive holds all of our code that it runs; TorchServe's Python needs what handler-requirements.txt names.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml  # type: ignore[import-untyped]  # TorchServe needs it; its types are nobody's dependency

from deploy.torchserve.meters import declarations
from serving.bundle import Bundle
from serving.errors import BundleRefused
from serving.mismatch import listing
from serving.settings import BackendConfig, EngineConfig

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
_PACKAGES = ("serving", "protos")
_MODULES = ("batch", "json_form", "meters", "reply")
"""Of this folder, those that the handler imports."""

_STARTUP_SECONDS = 600
"""All workers import torch at once; one that TorchServe takes for dead begins again."""


class ToolMissing(Exception):
    """What TorchServe brings is not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a worker serves its archive. Times as TorchServe has them."""

    backend: str = "onnx"
    num_slots: int = 32
    batch_size: int = 64
    """Requests that TorchServe hands over at once, at most."""
    batch_delay_ms: int = 5
    """How long the first of them waits for others."""
    workers: int = 1
    response_timeout_seconds: int = 120
    """After which TorchServe kills a worker that has not answered."""
    grpc_streams: bool = False
    """Whether gRPC's StreamPredictions streams; off, all lines come in one message. A Predictions call that asks for a
    stream then stops the worker for good: TorchServe 0.12 breaks on a second message, and tells us nothing."""

    def __post_init__(self) -> None:
        for name in ("num_slots", "batch_size", "workers", "response_timeout_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_delay_ms < 0:
            raise ValueError(f"batch_delay_ms must be at least 0, got {self.batch_delay_ms}")

    def model_config(self, bundle: Bundle) -> dict[str, object]:
        """What TorchServe, and our handler under `ctm`, read of the archive's settings.

        Raises:
            ValueError: a number out of its range.
            BundleRefused: the bundle has no graphs for that backend.
        """
        engine = EngineConfig(num_slots=self.num_slots)
        # Rows wait all or none: a batch that TorchServe hands over always fits.
        engine = engine.model_copy(update={"max_waiting": self.batch_size * engine.max_rows})
        backend = BackendConfig.model_validate(
            {"kind": self.backend, "allow_torchscript": self.backend == "torchscript"}
        )
        if not bundle.graphs(self.backend):
            there = listing(artefact.backend for artefact in bundle.manifest.artefacts)
            raise BundleRefused(f"bundle {bundle}: got graphs for {there}, expected some for {self.backend}")
        return {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": self.batch_size,
            "maxBatchDelay": self.batch_delay_ms,
            "responseTimeout": self.response_timeout_seconds,
            "startupTimeout": _STARTUP_SECONDS,
            "ctm": {
                "engine": engine.model_dump(),
                "backend": backend.model_dump(),
                "grpc_streams": self.grpc_streams,
            },
        }


def write_archive(bundle: Bundle, output: Path, settings: Settings) -> Path:
    """Make `NAME.mar` in `output` with torch-model-archiver; an older one is replaced once the new one is whole.

    Raises:
        ToolMissing: there is no torch-model-archiver, or it failed.
        BundleRefused, ValueError: see `Settings.model_config`.
    """
    with TemporaryDirectory(dir=output, prefix=".archive-") as work:
        stage, scratch = Path(work, "stage"), Path(work, "scratch")
        scratch.mkdir()
        for package in _PACKAGES:
            shutil.copytree(ROOT / package, stage / package, ignore=shutil.ignore_patterns("__pycache__"))
        own = stage / "deploy" / "torchserve"
        own.mkdir(parents=True)
        for module in _MODULES:
            shutil.copy(HERE / f"{module}.py", own)
        shutil.copytree(bundle.path, stage / "bundle" / bundle.name / str(bundle.version))
        config = Path(work, "model-config.json")  # which is YAML, too
        config.write_text(json.dumps(settings.model_config(bundle), indent=2) + "\n")
        command: list[str | Path] = [_archiver(), "--model-name", bundle.name, "--version", str(bundle.version)]
        command += ["--handler", HERE / "handler.py", "--extra-files", stage, "--config-file", config]
        command += ["--requirements-file", HERE / "handler-requirements.txt", "--export-path", work]
        # It collects files in a folder of the model's name among the temporary ones, whatever stands there.
        environment = os.environ | {"TMPDIR": str(scratch)}
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise ToolMissing(f"torch-model-archiver failed: {' '.join(done.stderr.split())[-400:]}")
        return Path(work, f"{bundle.name}.mar").replace(output / f"{bundle.name}.mar")


def write_config(output: Path) -> Path:
    """Write `config.properties` and `metrics.yaml` for all archives in `output`.

    Raises:
        ToolMissing: TorchServe is not installed.
    """
    output = output.resolve()
    metrics = yaml.safe_load(_torchserve_metrics().read_text())
    for kind, entries in declarations().items():
        metrics["model_metrics"].setdefault(kind, []).extend(entries)
    (output / "metrics.yaml").write_text(yaml.safe_dump(metrics, sort_keys=False))
    archives = sorted(path.name for path in output.glob("*.mar"))
    lines = [
        "inference_address=http://127.0.0.1:8080",
        "management_address=http://127.0.0.1:8081",
        "metrics_address=http://127.0.0.1:8082",
        "grpc_inference_port=7070",
        "grpc_management_port=7071",
        "grpc_inference_address=127.0.0.1",
        "grpc_management_address=127.0.0.1",
        "disable_token_authorization=false",
        "enable_model_api=false",
        f"model_store={output}",
        f"load_models={','.join(archives)}",
        "allowed_urls=file://.*",
        "decode_input_request=false",
        "metrics_mode=prometheus",
        f"metrics_config={output / 'metrics.yaml'}",
        "job_queue_size=1024",
        "max_request_size=16777216",
        "max_response_size=16777216",
    ]
    path = output / "config.properties"
    path.write_text("\n".join(lines) + "\n")
    return path


def _archiver() -> str:
    beside = Path(sys.executable).with_name("torch-model-archiver")
    found = str(beside) if beside.exists() else shutil.which("torch-model-archiver")
    if found is None:
        raise ToolMissing("there is no torch-model-archiver here: install deploy/torchserve/requirements.txt")
    return found


def _torchserve_metrics() -> Path:
    package = importlib.util.find_spec("ts")
    if package is None or package.origin is None:
        raise ToolMissing("TorchServe is not installed here: install deploy/torchserve/requirements.txt")
    return Path(package.origin).parent / "configs" / "metrics.yaml"
