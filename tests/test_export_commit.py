"""A bundle and a measurement say which code they are of, where that is known."""

import subprocess
from pathlib import Path

import pytest

from export.commit import describe_commit


def _git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_is_named_by_its_commit_and_marked_when_it_was_changed(tmp_path: Path) -> None:
    _git(tmp_path, "init", "--quiet")
    (tmp_path / "code").write_text("1")
    _git(tmp_path, "add", "code")
    _git(tmp_path, "commit", "--quiet", "--message", "one")
    commit = _git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert describe_commit(tmp_path) == commit
    (tmp_path / "code").write_text("2")
    assert describe_commit(tmp_path) == f"{commit}-dirty"


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    assert describe_commit(tmp_path / "nowhere") == ""


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_commit(Path(__file__).parent) == ""
