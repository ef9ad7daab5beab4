"""`ctm-serve --fetch`: a model that stands in a Hugging Face repository or a folder, served by the real command."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from fake_hub import FakeHub, fake_hub
from served import launch, served

from protos import ctm_serving_pb2 as pb
from protos import ctm_serving_pb2_grpc as pb_grpc
from serving.tensors import tensor_message

DIGITS = Path(__file__).resolve().parents[2] / "model_store" / "mnist" / "1"
IMAGE = tensor_message("image", np.random.default_rng(0).random((1, 1, 28, 28), np.float32))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that has the shipped digits as `org/digits`; processes that are started here use it."""
    with fake_hub() as hub:
        hub.repositories["org/digits"] = DIGITS
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


async def served_models(store: Path, *arguments: str) -> list[str]:
    """Start a server, have its digits think, and say what it serves."""
    async with served(store, *arguments) as server, grpc.aio.insecure_channel(server.address) as channel:
        stub = pb_grpc.ThinkerStub(channel)
        events = [event async for event in stub.Think(pb.ThinkRequest(model="mnist", inputs=[IMAGE]))]
        assert events[-1].HasField("summary")
        listed = await stub.ListModels(pb.ListModelsRequest())
        return [f"{model.name}/{model.version}" for model in listed.models]


async def test_a_repository_is_served_at_a_revision_and_again_without_a_network(hub, tmp_path, monkeypatch):
    assert await served_models(tmp_path / "store", "--fetch", "org/digits@v1") == ["mnist/1"]
    assert "tick.onnx" in hub.files()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    assert await served_models(tmp_path / "another", "--fetch", "org/digits@v1") == ["mnist/1"]
    assert hub.asked == []


async def test_a_folder_is_served(tmp_path):
    assert await served_models(tmp_path / "store", "--fetch", str(DIGITS)) == ["mnist/1"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param("org/absent", "no such repository at http://127.0.0.1", id="no repository"),
        pytest.param("org/digits@v9", "no revision 'v9'", id="no revision"),
        pytest.param("org/empty", "manifest.json: got no such file", id="no manifest"),
        pytest.param("/no/such/folder", "no such folder", id="no folder"),
    ],
)
async def test_what_cannot_be_fetched_ends_the_command_with_a_sentence(hub, tmp_path, source, said):
    hub.repositories["org/empty"] = tmp_path / "empty"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    process = await launch("--store", tmp_path / "store", "--fetch", source)
    _, stderr = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 1
    (line,) = [line for line in stderr.decode().splitlines() if line.startswith("ctm-serve:")]
    assert said in line
    assert "Traceback" not in stderr.decode()
