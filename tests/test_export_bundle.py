"""Publishing: at once or not at all, in the next free version."""

import threading
from pathlib import Path

import pytest

from export.bundle import draft, publish
from export.errors import ExportError


def _publish(store: Path, content: str = "whole") -> Path:
    with draft(store, "mnist") as folder:
        (folder / "graph").write_text(content)
        return publish(folder, store, "mnist", lambda version: _write_version(folder, version))


def _write_version(folder: Path, version: int) -> None:
    (folder / "version").write_text(str(version))


@pytest.mark.parametrize(
    ("taken", "version"),
    [
        pytest.param([], 1, id="the first"),
        pytest.param(["1", "2"], 3, id="the next"),
        pytest.param(["9", "10"], 11, id="compared as numbers"),
        pytest.param(["2", ".mnist-half", "notes"], 3, id="other names are no versions"),
    ],
)
def test_a_bundle_takes_the_next_version(tmp_path: Path, taken: list[str], version: int) -> None:
    for name in taken:
        (tmp_path / "mnist" / name).mkdir(parents=True)
    path = _publish(tmp_path)
    assert path == tmp_path / "mnist" / str(version)
    assert (path / "version").read_text() == str(version)


def test_nothing_that_a_server_would_see_is_there_before_the_bundle_is_whole(tmp_path: Path) -> None:
    with draft(tmp_path, "mnist") as folder:
        (folder / "graph").write_text("half")
        assert folder.name.startswith(".mnist-")
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
        publish(folder, tmp_path, "mnist", lambda _: None)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "mnist",
        "mnist/1",
        "mnist/1/graph",
    ]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def export() -> None:
        with draft(tmp_path, "mnist") as folder:
            (folder / "graph").write_text("half")
            raise error

    with pytest.raises(error):
        export()
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_is_taken_meanwhile_is_left_alone_and_the_next_one_used(tmp_path: Path) -> None:
    versions = []

    def finish(version: int) -> None:
        versions.append(version)
        _write_version(folder, version)
        if version == 1:
            other = tmp_path / "mnist" / "1"
            other.mkdir(parents=True)
            (other / "graph").write_text("another export's")

    with draft(tmp_path, "mnist") as folder:
        (folder / "graph").write_text("ours")
        path = publish(folder, tmp_path, "mnist", finish)
    assert versions == [1, 2]
    assert path.name == (path / "version").read_text() == "2"
    assert (tmp_path / "mnist" / "1" / "graph").read_text() == "another export's"


def test_concurrent_exports_get_different_versions(tmp_path: Path) -> None:
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda text=str(index): paths.append(_publish(tmp_path, text))) for index in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(path.name) for path in paths) == list(range(1, 9))
    assert sorted((path / "graph").read_text() for path in paths) == [str(index) for index in range(8)]
    assert all((path / "version").read_text() == path.name for path in paths)


def test_everybody_may_read_a_bundle(tmp_path: Path) -> None:
    assert _publish(tmp_path).stat().st_mode & 0o555 == 0o555


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "-x", "ä"])
def test_names_that_are_no_safe_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="a model's name is letters, digits"), draft(tmp_path, name):
        pass
    assert list(tmp_path.iterdir()) == []
