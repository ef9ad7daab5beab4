"""Files of Hugging Face repositories, from a hub on this machine, and why there are none."""

import socket

import pytest
from fake_hub import COMMIT, fake_hub, look_at

from ctm.hub import HubError, download, is_repository


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has `org/model`."""
    with fake_hub() as hub:
        look_at(monkeypatch, hub.address, tmp_path / "cache")
        hub.repositories["org/model"] = tmp_path / "pushed"
        (tmp_path / "pushed").mkdir()
        for name in ("config.json", "weights.safetensors", "optimiser.safetensors"):
            (tmp_path / "pushed" / name).write_text(name)
        yield hub


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"], ids=["none", "branch", "tag", "commit"])
def test_only_the_files_that_are_asked_for_are_downloaded(hub, revision):
    folder = download(f"org/model{revision}", ["config.json", "weights.safetensors"], optional=["tokenizer.json"])
    assert (folder / "weights.safetensors").read_text() == "weights.safetensors"
    assert hub.files() == ["config.json", "weights.safetensors"]


def test_the_cache_serves_without_a_network(hub, tmp_path, monkeypatch):
    first = download("org/model", ["config.json"])
    look_at(monkeypatch, hub.address, tmp_path / "cache", offline=True)
    hub.asked.clear()
    assert download("org/model", ["config.json"]) == first
    assert hub.asked == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param(
            "org/absent", "org/absent is no file or folder here, and no repository at http", id="no repository"
        ),
        pytest.param("org/gated", "org/gated is gated at http", id="a gated one"),
        pytest.param("org/model@v9", "has no revision 'v9'", id="no revision"),
        pytest.param("org/model", "has no tick.onnx", id="no such file"),
        pytest.param("a b/c", "'a b/c' is no repository id", id="no repository's name"),
    ],
)
def test_what_the_hub_does_not_give_is_said(hub, source, said):
    hub.gated.add("org/gated")
    with pytest.raises(HubError) as error:
        download(source, ["config.json", "tick.onnx"])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("offline", "said"),
    [pytest.param(True, "HF_HUB_OFFLINE is set", id="offline"), pytest.param(False, "no answer at", id="no network")],
)
def test_without_a_hub_and_without_a_cache_there_is_a_sentence(tmp_path, monkeypatch, offline, said):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # nobody listens there
        look_at(monkeypatch, f"http://127.0.0.1:{probe.getsockname()[1]}", tmp_path / "cache", offline=offline)
        with pytest.raises(HubError, match=said):
            download("org/model", ["config.json"])


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("org/model", True),
        ("org/model@v1", True),
        ("org/model@refs/pr/1", True),
        ("model", False),
        ("a/b/c", False),
        ("./model", False),
        ("../model", False),
        ("/org/model", False),
        ("org/model@", False),
        ("", False),
    ],
)
def test_what_can_be_meant_as_a_repository(source, meant):
    assert is_repository(source) is meant
