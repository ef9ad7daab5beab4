"""The side port, over a real socket."""

import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from serving.http import SidePort


class Door:
    """A side port whose server is ready when the test says so."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.registry = CollectorRegistry()
        Counter("ctm_knocks_total", "Knocks.", registry=self.registry).inc(2)
        self.side = SidePort(self.registry, lambda: self.reason)
        self.port = 0

    async def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"http://127.0.0.1:{self.port}{path}", headers=headers) as answer,
        ):
            return answer.status, answer.headers["Content-Type"], await answer.text()


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    door = Door()
    door.port = await door.side.start("127.0.0.1:0")
    yield door
    await door.side.stop()


@pytest.mark.parametrize(
    ("path", "reason", "status", "text"),
    [
        pytest.param("/healthz", None, 200, "alive\n", id="alive"),
        pytest.param("/healthz", "shutting down", 200, "alive\n", id="alive while it drains"),
        pytest.param("/readyz", None, 200, "ready\n", id="ready"),
        pytest.param("/readyz", "starting", 503, "starting\n", id="starting"),
        pytest.param("/readyz", "shutting down", 503, "shutting down\n", id="shutting down"),
    ],
)
async def test_health(door, path, reason, status, text):
    door.reason = reason
    answer = await door.get(path)
    assert (answer[0], answer[2]) == (status, text)


@pytest.mark.parametrize(
    ("accept", "kind", "last_line"),
    [
        pytest.param("", "text/plain", "ctm_knocks_total 2.0", id="no wish"),
        pytest.param("text/html,*/*", "text/plain", "ctm_knocks_total 2.0", id="a browser"),
        pytest.param(
            "application/openmetrics-text; version=1.0.0", "application/openmetrics-text", "# EOF", id="OpenMetrics"
        ),
    ],
)
async def test_metrics_in_the_form_that_is_asked_for(door, accept, kind, last_line):
    status, content_type, text = await door.get("/metrics", Accept=accept)
    lines = [line for line in text.splitlines() if "_created" not in line]
    assert status == 200
    assert content_type.startswith(kind)
    assert lines[-1] == last_line
    assert "# TYPE ctm_knocks" in text


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        pytest.param("/", "GET", 404, id="nothing there"),
        pytest.param("/metrics/../etc/passwd", "GET", 404, id="no files"),
        pytest.param("/metrics", "POST", 405, id="read only"),
        pytest.param("/healthz", "HEAD", 200, id="a glance"),
    ],
)
async def test_what_else_one_may_ask(door, path, method, status):
    assert (await door.get(path, method))[0] == status


async def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        side = SidePort(CollectorRegistry(), lambda: None)
        with pytest.raises(OSError, match=f"cannot listen on {address}"):
            await side.start(address)


async def test_the_port_is_free_again_after_stop():
    door = Door()
    door.port = await door.side.start("127.0.0.1:0")
    await door.get("/healthz")
    await door.side.stop()
    await door.side.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await door.get("/healthz")


async def test_a_side_port_that_never_started_stops():
    await SidePort(CollectorRegistry(), lambda: None).stop()
