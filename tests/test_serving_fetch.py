"""Bundles from folders and Hugging Face repositories: what comes into the store, and why something does not."""

import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import read_manifest, write_bundle, write_manifest
from fake_hub import COMMIT, FakeHub, fake_hub, look_at

from serving.bundle import check_files
from serving.errors import BundleRefused, InstallationLacks
from serving.fetch import fetch
from serving.store import load_bundle

Change = Callable[[Path], object]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Of a model `fake`, version 1; the folder may be called as it likes."""
    path = write_bundle(tmp_path / "elsewhere").rename(tmp_path / "download")
    (path / "README.md").write_text("# A card\n")
    (path / "optimiser.pt").write_bytes(b"nobody vouches for this")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def hub(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that has the bundle as `org/fake`."""
    with fake_hub() as hub:
        look_at(monkeypatch, hub.address, tmp_path / "cache")
        hub.repositories["org/fake"] = bundle
        yield hub


BROUGHT = ["README.md", "encode.onnx", "manifest.json", "start.safetensors", "tick.onnx"]


def test_a_bundle_of_a_folder_comes_into_the_store_under_its_own_name(bundle, store):
    assert fetch(str(bundle), store) == store / "fake" / "1"
    assert sorted(path.name for path in (store / "fake" / "1").iterdir()) == BROUGHT
    assert str(load_bundle(store / "fake" / "1")) == "fake/1"
    assert sorted(path.name for path in store.iterdir()) == ["fake"], "nothing is left beside it"


@pytest.mark.parametrize("revision", ["", "@main", "@v1", f"@{COMMIT}"], ids=["none", "branch", "tag", "commit"])
def test_a_bundle_of_a_repository_comes_into_the_store(hub, store, revision):
    assert fetch(f"org/fake{revision}", store) == store / "fake" / "1"
    assert str(load_bundle(store / "fake" / "1")) == "fake/1"
    assert hub.files() == BROUGHT, "and nothing else is downloaded"
    assert not [path for path in (store / "fake" / "1").iterdir() if path.is_symlink()], "the cache may be cleared"


def test_a_name_that_stands_for_many_is_no_more_than_a_name(hub, bundle, store):
    name_file("*")(bundle)
    with pytest.raises(BundleRefused, match="files"):
        fetch("org/fake", store)
    assert hub.files() == ["README.md", "manifest.json"]


def test_what_the_cache_holds_is_fetched_without_a_network(hub, store, tmp_path, monkeypatch):
    fetch("org/fake@v1", store)
    assert hub.files() == BROUGHT
    shutil.rmtree(store)
    look_at(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache", offline=True)
    assert fetch("org/fake@v1", store) == store / "fake" / "1"


def test_what_is_there_already_stays(bundle, store):
    place = fetch(str(bundle), store)
    before = (place / "tick.onnx").stat().st_mtime_ns
    assert fetch(str(bundle), store) == place
    assert (place / "tick.onnx").stat().st_mtime_ns == before


def test_a_folder_is_what_is_meant_where_there_is_one(hub, bundle, store, tmp_path, monkeypatch):
    shutil.copytree(bundle, tmp_path / "org" / "fake")
    monkeypatch.chdir(tmp_path)
    fetch("org/fake", store)
    assert hub.asked == []


def change_manifest(**fields: Any) -> Change:
    return lambda path: write_manifest(path, {**read_manifest(path), **fields})


def name_file(name: str) -> Change:
    return lambda path: write_manifest(
        path, {**read_manifest(path), "files": [{**read_manifest(path)["files"][0], "name": name}]}
    )


BAD = [
    pytest.param(lambda path: (path / "manifest.json").unlink(), "manifest.json: got no such file", id="no manifest"),
    pytest.param(lambda path: (path / "manifest.json").write_text("{"), "expected JSON", id="half a manifest"),
    pytest.param(
        lambda path: (path / "tick.onnx").write_bytes(b"tick.onnx of fakE"), "tick.onnx: got sha256", id="other bytes"
    ),
    pytest.param(lambda path: (path / "tick.onnx").unlink(), "'tick.onnx': got no such file", id="a file is missing"),
    pytest.param(change_manifest(format_version=9), "format_version: got 9", id="newer format"),
    pytest.param(change_manifest(name="../../fake"), "name: got '../../fake', expected up to 100", id="name leads out"),
    pytest.param(change_manifest(name=".fake"), "name: got '.fake'", id="hidden name"),
    pytest.param(change_manifest(version=0), "version: got 0", id="no version"),
    pytest.param(change_manifest(version=2**32 - 1), "version: got 4294967295", id="a version beyond the store's"),
    pytest.param(name_file("../secret"), "files: got '../secret', expected plain names", id="file leads out"),
    pytest.param(name_file("/etc/passwd"), "files: got '/etc/passwd'", id="a file elsewhere"),
    pytest.param(name_file(".."), "files: got '..'", id="the folder above"),
    pytest.param(name_file(""), "files: got ''", id="a file without a name"),
]


@pytest.mark.parametrize(("spoil", "said"), BAD)
@pytest.mark.parametrize("kind", ["folder", "repository"])
def test_what_is_not_what_its_manifest_says_stays_out(request, bundle, store, kind, spoil, said):
    spoil(bundle)
    source = str(bundle)
    if kind == "repository":
        request.getfixturevalue("hub")
        source = "org/fake"
    with pytest.raises(BundleRefused, match=re.escape(said)) as refused:
        fetch(source, store)
    assert str(refused.value).startswith(f"{source}: ")
    assert not store.exists() or list(store.iterdir()) == []


def test_another_bundle_in_its_place_is_not_overwritten(bundle, store):
    place = fetch(str(bundle), store)
    change_manifest(description="another")(bundle)
    before = (place / "manifest.json").read_bytes()
    with pytest.raises(BundleRefused, match=r"got another bundle of this name and version, expected the same one"):
        fetch(str(bundle), store)
    assert (place / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("same", [True, False], ids=["the_same", "another"])
def test_a_server_that_was_quicker_with_a_store_of_both_is_no_harm(bundle, store, monkeypatch, same):
    def check_and_be_late(*arguments: Any) -> None:
        check_files(*arguments)
        shutil.copytree(bundle, store / "fake" / "1")
        if not same:
            write_manifest(store / "fake" / "1", read_manifest(bundle) | {"description": "another"})

    monkeypatch.setattr("serving.fetch.check_files", check_and_be_late)
    if same:
        assert fetch(str(bundle), store) == store / "fake" / "1"
    else:
        with pytest.raises(BundleRefused, match="got another bundle of this name and version"):
            fetch(str(bundle), store)
    assert [path.name for path in store.iterdir()] == ["fake"], "nothing is left beside it"


def test_a_store_that_is_no_folder_is_said(bundle, store):
    store.write_text("")
    with pytest.raises(BundleRefused, match=r"got Not a directory \(.*\), expected to copy it into|got File exists"):
        fetch(str(bundle), store)


@pytest.mark.parametrize(
    "source", ["nowhere", "/no/such/folder", "./org/fake", "a/b/c", "https://hub/org/fake", "org/fake@"]
)
def test_what_is_neither_a_folder_nor_a_repository_is_not_asked_for(hub, store, source):
    with pytest.raises(BundleRefused, match=r"got no such folder, expected a folder that holds a bundle, or ORG/REPO"):
        fetch(source, store)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param("org/absent", "got no such repository at http", id="no repository"),
        pytest.param("org/gated", "got a gated repository at http", id="a gated one"),
        pytest.param("org/fake@v9", "got no revision 'v9' at http", id="no revision"),
        pytest.param("a--b/c", "expected ORG/REPO", id="a name that no repository has"),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_a_sentence(hub, store, source, said):
    hub.gated.add("org/gated")
    with pytest.raises(BundleRefused) as refused:
        fetch(source, store)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("offline", "said"),
    [
        pytest.param(True, "got HF_HUB_OFFLINE is set, expected", id="offline"),
        pytest.param(False, "got no answer at http://127.0.0.1:", id="no network"),
    ],
)
def test_without_a_hub_and_without_a_cache_there_is_a_sentence(store, tmp_path, monkeypatch, offline, said):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # nobody listens there
        look_at(monkeypatch, f"http://127.0.0.1:{probe.getsockname()[1]}", tmp_path / "cache", offline=offline)
        with pytest.raises(BundleRefused, match=re.escape(said)):
            fetch("org/fake", store)


def test_without_the_package_the_extra_is_named(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InstallationLacks, match=r"huggingface_hub is not installed \(the extra hub brings it"):
        fetch("org/fake", store)
