"""Logs: one line an event, whoever wrote it, with the fields that were given."""

import json
import logging
import warnings
from collections.abc import Iterator
from io import StringIO

import pytest

from serving import logs


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    root, serving = logging.getLogger(), logging.getLogger("serving")
    before = root.handlers[:], root.level, serving.level
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level, serving.level = before
    root.setLevel(before[1])
    serving.setLevel(before[2])


def lines(level: str = "info") -> tuple[StringIO, logging.Logger]:
    stream = StringIO()
    logs.configure(level, "json", stream)
    return stream, logging.getLogger("serving.engine")


def test_a_line_is_a_json_object_with_its_fields():
    stream, log = lines()
    log.warning("tick failed", extra={"request_ids": ["a", "b"], "model": "mnist"})
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "tick failed",
        "level": "warning",
        "logger": "serving.engine",
        "request_ids": ["a", "b"],
        "model": "mnist",
    }


def test_an_exception_is_one_field():
    stream, log = lines()
    try:
        raise ValueError("of no use")
    except ValueError:
        log.exception("encode failed")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: of no use")


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[31mred", '{"event": "forged"}', "\udc80"])
def test_a_request_id_cannot_forge_a_line(text):
    stream, log = lines()
    log.info("request", extra={"request_id": text})
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["request_id"] == text


def test_what_json_does_not_know_is_written_as_text():
    stream, log = lines()
    log.info("store", extra={"path": object})
    assert json.loads(stream.getvalue())["path"] == "<class 'object'>"


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        pytest.param("debug", ["ours debug", "ours info", "theirs info", "theirs warning"], id="debug"),
        pytest.param("info", ["ours info", "theirs warning"], id="info: libraries keep quiet"),
        pytest.param("error", [], id="error"),
    ],
)
def test_what_is_logged_at_each_level(level, seen):
    stream, ours = lines(level)
    theirs = logging.getLogger("aiohttp.server")
    ours.debug("ours debug")
    ours.info("ours info")
    theirs.info("theirs info")
    theirs.warning("theirs warning")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == seen


def test_the_console_form_is_for_people():
    stream = StringIO()
    logs.configure("info", "console", stream)
    logging.getLogger("serving.server").info("model ready", extra={"model": "mnist", "request_id": "a\nb"})
    (line,) = stream.getvalue().splitlines()
    assert "model ready" in line
    assert "model=mnist" in line
    assert r"request_id='a\nb'" in line
    assert "\x1b" not in line, "no colours where nobody sees them"


def test_warnings_are_logged_too():
    stream, _ = lines()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure("info", "json", stream)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert "DeprecationWarning: old" in json.loads(stream.getvalue())["event"]


def test_configuring_twice_does_not_write_twice():
    stream, log = lines()
    logs.configure("info", "json", stream)
    log.info("once")
    assert len(stream.getvalue().splitlines()) == 1
