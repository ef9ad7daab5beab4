"""As much of a Hugging Face hub as downloads need, on a port of this machine: repositories are folders."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Its repositories by id, each of one commit, on `main` and on the tag `v1`."""

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def files(self) -> list[str]:
        """The names of the files that were downloaded."""
        return sorted({path.rpartition("/")[2] for path in self.asked if "/resolve/" in path})


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: FakeHub, *arguments: object) -> None:
        self._hub = hub
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.command == "GET":
            self._hub.asked.append(path)
        if path.startswith("/api/models/"):
            owner, name, kind, revision, *_ = [*path.removeprefix("/api/models/").split("/"), "main", "main"]
        else:
            owner, name, kind, revision, *_ = path[1:].split("/")
        repository = f"{owner}/{name}"
        if repository in self._hub.gated:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if repository not in self._hub.repositories:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", "v1", COMMIT):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        folder = self._hub.repositories[repository]
        if kind == "resolve":
            return self._file(folder / path.rpartition("/")[2])
        listed = [
            {"type": "file", "path": file.name, "oid": "0" * 40, "size": file.stat().st_size}
            for file in folder.iterdir()
        ]
        document = listed if kind == "tree" else {"id": repository, "sha": COMMIT, "siblings": []}
        return self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _file(self, file: Path) -> None:
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        data = file.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return self._send(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A caller that hung up is no news; whatever else goes wrong here, the caller will say."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    with _Server(("127.0.0.1", 0), partial(_Handler, hub)) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def look_at(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path, *, offline: bool = False) -> None:
    """Have huggingface_hub, which read its environment when it was imported, use this hub and this cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
