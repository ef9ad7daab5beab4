"""The server's settings: typed, documented and checked here, wherever they come from (see `config.py`)."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_settings import NoDecode

from serving.store import newest


@dataclass(frozen=True, slots=True)
class Looks:
    """How a value looks in a line of help."""

    text: str


def _split(value: object) -> object:
    """`a,b` is two names."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _address(value: str) -> str:
    match = re.fullmatch(r"(?:[^\s:\[\]/]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", value)
    if match is None or int(match[1]) > 65535:
        raise ValueError("HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051, the port at most 65535")
    return value


def _version_policy(value: str) -> str:
    newest(value)
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), Looks("NAME,...")]
Address = Annotated[str, AfterValidator(_address), Looks("HOST:PORT")]
VersionPolicy = Annotated[str, AfterValidator(_version_policy), Looks("latest:N|all")]
Sources = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), Looks("FOLDER|ORG/REPO[@REVISION],...")]
Folder = Annotated[Path, Looks("FOLDER")]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class EngineConfig(_Config):
    """How much thinking happens at once, for each model."""

    num_slots: int = Field(default=32, ge=1, le=65536)
    """Thoughts that tick together."""
    max_waiting: int = Field(default=1024, ge=1)
    """Thoughts that may wait for a slot; beyond, requests are refused."""
    max_rows: int = Field(default=256, ge=1)
    """Rows of one request."""
    max_links: int = Field(default=4096, ge=1)
    """Thoughts of one row in a chain, such as the tokens of a text."""
    encode_rows_per_step: int = Field(default=8, ge=1)
    """Inputs encoded between two ticks; few keep a heavy encoder from stalling those that think."""
    chain_ahead: int = Field(default=32, ge=1)
    """Answers of one chain that its caller may leave unread; beyond, the chain pauses and holds no slot."""
    deadline_margin_seconds: float = Field(default=0.02, ge=0)
    """How long before its deadline, beside a recent tick's time, a thought answers with what it has."""

    @model_validator(mode="after")
    def _check_rows(self) -> "EngineConfig":
        if self.max_rows > self.max_waiting:
            raise ValueError(f"max_rows of at most max_waiting ({self.max_waiting}): rows wait all or none")
        return self


class BackendConfig(_Config):
    """What runs the ticks."""

    kind: Literal["onnx", "torchscript", "eager"] = "onnx"
    """ONNX Runtime, or torch with a bundle's TorchScript graphs or its weights."""
    providers: Names = ("CPUExecutionProvider",)
    """ONNX Runtime's execution providers, in order of preference."""
    intra_op_threads: int = Field(default=0, ge=0)
    """Threads inside one tick; 0 leaves it to the runtime."""
    spin: bool = False
    """Let idle threads burn cycles: quicker where cores are plenty, slower where they are few."""
    allow_torchscript: bool = False
    """Allow the torchscript kind: its graphs are code, so trust who wrote the store."""

    @model_validator(mode="after")
    def _check_torchscript(self) -> "BackendConfig":
        if self.kind == "torchscript" and not self.allow_torchscript:
            raise ValueError("allow_torchscript along with kind torchscript: such graphs are code")
        return self


class ServerConfig(_Config):
    """Serve Continuous Thought Machines: each request stops on the tick at which it is certain."""

    address: Address = "127.0.0.1:50051"
    """Where gRPC listens; port 0 takes any free one."""
    http_address: Address = "127.0.0.1:8080"
    """Where /metrics, /healthz and /readyz listen."""
    store: Folder = Path("model_store")
    """Folder of published models, <name>/<version>/."""
    fetch: Sources = ()
    """Bundles to bring into the store first: folders, or Hugging Face repositories, at a branch, tag or commit."""
    models: Names = ()
    """Names of the models to serve; none named means all."""
    version_policy: VersionPolicy = "latest:1"
    """Versions to serve of each model: the N newest that are sound, or all."""
    store_poll_seconds: float = Field(default=5.0, ge=0)
    """How often to look for versions that came into the store or left it; 0 never does."""
    leave_seconds: float = Field(default=600.0, ge=0)
    """How long thoughts of a version that leaves may finish; then they answer with what they have."""
    drain_delay_seconds: float = Field(default=0.0, ge=0)
    """How long requests are still taken after SIGTERM, while balancers learn from the health service to send none."""
    grace_seconds: float = Field(default=30.0, ge=0)
    """How long running thoughts may finish after that."""
    repository_control: bool = False
    """Let callers load and unload models (Open Inference's RepositoryModelLoad and RepositoryModelUnload)."""
    reflection: bool = False
    """Let clients ask for the protocol (gRPC reflection)."""
    max_message_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, le=2**31 - 1)
    """Largest gRPC message, received or sent."""
    max_concurrent_calls: int = Field(default=4096, ge=1)
    """gRPC calls open at once; beyond, calls are refused."""
    max_connection_age_seconds: float = Field(default=0.0, ge=0, le=10**6)
    """How long a connection takes new calls, so that clients that balance meet new replicas; 0 is for ever."""
    stream_buffer: int = Field(default=64, ge=1)
    """Unsent events of one request; beyond, newer ticks of a row replace older ones."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged."""
    log_format: Literal["console", "json"] = "console"
    """For people, or one JSON object a line."""
    engine: EngineConfig = EngineConfig()
    backend: BackendConfig = BackendConfig()
