"""The command ctm-think against a Thinker on a real port: what it prints, and with which status it exits."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_thinker import ENDLESS, MANIFEST, FakeThinker, served
from PIL import Image

from protos import ctm_bundle_pb2 as bundle_pb2
from serving import errors
from serving.think import main

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


@pytest.fixture
def thinker() -> Iterator[FakeThinker]:
    with served(FakeThinker()) as running:
        yield running


@pytest.fixture
def digit(tmp_path: Path) -> str:
    return image(tmp_path, "digit.png")


def image(folder: Path, name: str, paper: int = 0) -> str:
    pixels = np.full((28, 28), paper, np.uint8)
    pixels[8:20, 12:16] = 255 - paper
    Image.fromarray(pixels).save(folder / name)
    return str(folder / name)


def think(thinker: FakeThinker, *arguments: str) -> int:
    return main(["--address", thinker.address, "--model", "digits", *arguments])


def test_plain_lines_where_there_is_no_terminal(thinker: FakeThinker, digit: str, capsys: Any):
    assert think(thinker, digit) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[:4] == [
        "digit.png  tick  1  certainty 0.32  2 0.38  0 0.07  1 0.07",
        "digit.png  tick  2  certainty 0.63  1 0.67  0 0.04  2 0.04",
        "digit.png  tick  3  certainty 0.95  1 0.95  0 0.00  2 0.00",
        "digit.png  answer 1  certainty 0.95  certain at tick 3",
    ]
    assert re.fullmatch(r"first tick after [\d.]+ ms, all after [\d.]+ ms", printed.splitlines()[4])
    assert not CONTROL.search(printed)


def test_json_lines_for_scripts(thinker: FakeThinker, tmp_path: Path, capsys: Any):
    paths = [image(tmp_path, "a.png"), image(tmp_path, "b.png")]
    assert think(thinker, "--json", "--top", "1", "--max-ticks", "4", "--abstain-below", "0.9", *paths) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["tick"] * 6 + ["answer"] + ["tick"] + ["answer", "summary"]
    assert {event.get("image") for event in events} == {"a.png", "b.png", None}
    first, last = (event for event in events if event["event"] == "answer")
    assert (first["label"], first["stop_reason"], first["ticks_used"], first["abstained"]) == ("1", "CERTAIN", 3, False)
    assert (last["label"], last["stop_reason"], last["ticks_used"], last["abstained"]) == ("2", "TICK_BUDGET", 4, True)
    assert events[-1]["abstain_mask"] == [False, True]
    assert events[0]["top"] == [{"index": 2, "label": "2", "score": 0.385}]
    assert [event["seconds"] for event in events] == sorted(event["seconds"] for event in events)
    assert events[-1]["first_tick_seconds"] == events[0]["seconds"]


def test_all_images_are_rows_of_one_request(thinker: FakeThinker, tmp_path: Path):
    np.save(tmp_path / "two.npy", np.zeros((2, 1, 28, 28)))
    assert think(thinker, image(tmp_path, "a.png"), str(tmp_path / "two.npy")) == 0
    (asked,) = thinker.asked
    assert list(asked.inputs[0].shape) == [3, 1, 28, 28]
    assert (asked.version, asked.stream.top_k) == (MANIFEST.version, 3)


def test_options_reach_the_server(thinker: FakeThinker, digit: str):
    options = "--threshold 0.5 --min-ticks 2 --max-ticks 7 --patience 3 --abstain-below 0.25 --timeout 9 --top 5"
    assert think(thinker, *options.split(), digit) == 0
    asked = thinker.asked[0]
    stop = asked.stop
    assert (stop.certainty_threshold, stop.min_ticks, stop.max_ticks, stop.patience) == (0.5, 2, 7, 3)
    assert (asked.abstain_below, asked.timeout_seconds, asked.stream.top_k) == (0.25, 9.0, 5)


def test_standard_input_and_inversion(thinker: FakeThinker, tmp_path: Path, capsys: Any, monkeypatch: Any):
    paper = image(tmp_path, "paper.png", paper=255)
    with open(paper, "rb") as file:
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": file}))
        assert think(thinker, "-") == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("standard input  tick  1")
    assert captured.err == "ctm-think: standard input: its border is light, so it is inverted; --no-invert keeps it\n"
    pixels = np.frombuffer(thinker.asked[0].inputs[0].data, np.float32).reshape(28, 28)
    assert (pixels[0, 0], pixels[10, 14]) == (0, 1)
    assert think(thinker, "--no-invert", paper) == 0
    assert capsys.readouterr().err == ""


def test_bad_news_is_one_line_and_status_1(thinker: FakeThinker, digit: str, capsys: Any):
    def said(*arguments: str) -> str:
        assert think(thinker, *arguments) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("ctm-think: ")
        assert captured.err.count("\n") == 1
        return str(captured.err)

    assert "missing.png: No such file" in said("missing.png")
    assert "no model 'letters'; there is digits" in said("--model", "letters", digit)
    assert "no answer from 127.0.0.1:1:" in said("--address", "127.0.0.1:1", digit)
    thinker.failures = [errors.QueueFull("64 thoughts wait", retry_after_seconds=1)]
    assert "64 thoughts wait" in said(digit)
    thinker.failures = [errors.DeadlineExceeded("it came before any row ticked")]
    assert f"no answer from {thinker.address} in time: it came before" in said(digit)
    thinker.manifest = bundle_pb2.Manifest(
        name="digits", inputs=[bundle_pb2.TensorSpec(name="a"), bundle_pb2.TensorSpec(name="b")]
    )
    assert "takes 2 inputs" in said(digit)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param([], "arguments are required: INPUT", id="no image"),
        pytest.param(["--threshold", "1.5", "a.png"], "'1.5' is not a number from 0 to 1", id="threshold above 1"),
        pytest.param(["--threshold", "nan", "a.png"], "'nan' is not a number", id="threshold that is no number"),
        pytest.param(["--max-ticks", "0", "a.png"], "'0' is not a whole number from 1 to 4294967295", id="no ticks"),
        pytest.param(["--max-ticks", "4294967296", "a.png"], "not a whole number from 1 to", id="more ticks than fit"),
        pytest.param(["--max-ticks", "all", "a.png"], "'all' is not a whole number", id="ticks that are no number"),
        pytest.param(["--timeout", "-1", "a.png"], "'-1' is not a number from 0.001 to 86400", id="no time"),
        pytest.param(["--address", "", "a.png"], "'' is no HOST:PORT, such as 127.0.0.1:50051", id="no address"),
        pytest.param(["--address", "\udcff:1", "a.png"], r"'\udcff:1' is not UTF-8", id="an address of other bytes"),
        pytest.param(["--model", "\udcff", "a.png"], r"'\udcff' is not UTF-8", id="a model of other bytes"),
        pytest.param(["-", "a.png", "-"], "got - 2 times, expected once", id="standard input twice"),
        pytest.param(["--unknown", "a.png"], "unrecognized arguments: --unknown", id="unknown option"),
    ],
)
def test_bad_usage_is_status_2(arguments: list[str], said: str, capsys: Any):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    printed = capsys.readouterr().err
    assert "usage: ctm-think" in printed
    assert said in printed


def test_what_a_terminal_has_no_character_for_is_replaced(tmp_path: Path, monkeypatch: Any):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    with served(FakeThinker()) as thinker:
        assert think(thinker, image(tmp_path, "déjà.png")) == 0
    stdout.flush()
    assert stdout.buffer.getvalue().startswith(b"d?j?.png  tick  1")


def test_help_fits_a_terminal(capsys: Any, monkeypatch: Any):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def started(thinker: FakeThinker, *arguments: str) -> "subprocess.Popen[str]":
    """The command as a process of its own, with its first line read."""
    command = [sys.executable, "-m", "serving.think", "--address", thinker.address, "--model", "digits", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "tick" in process.stdout.readline()
    return process


def test_an_interrupt_cancels_the_call(digit: str):
    with served(FakeThinker(seconds_per_tick=0.2)) as thinker:
        process = started(thinker, "--max-ticks", str(ENDLESS), digit)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=200)
        assert (process.returncode, err) == (130, "")
        assert thinker.left.get(timeout=200) == ""


def test_a_reader_who_leaves_ends_it_quietly(digit: str):
    with (
        served(FakeThinker(seconds_per_tick=0.2)) as thinker,
        started(thinker, "--max-ticks", str(ENDLESS), digit) as process,
    ):
        process.stdout.close()
        assert process.wait(timeout=200) == 1
        assert process.stderr.read() == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
@pytest.mark.parametrize("colour", [pytest.param(True, id="colour"), pytest.param(False, id="NO_COLOR")])
def test_a_terminal_is_drawn_on(thinker: FakeThinker, digit: str, colour: bool):
    ours, theirs = os.openpty()
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM", "PYTEST_VERSION")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"} | ({} if colour else {"NO_COLOR": "1"})
    arguments = ["--address", thinker.address, "--model", "digits", "--pace", "0.01", digit]
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.think", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    written = b""
    while chunk := read(ours):
        written += chunk
    os.close(ours)
    assert process.wait(timeout=200) == 0
    text = written.decode()
    assert "digit.png" in text
    assert "certain at tick 3" in text
    assert "\x1b[2K" in text, "drawn over and over in place"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"
    assert ("\x1b[38;" in text) is colour


def read(terminal: int) -> bytes:
    """What is next on the terminal; nothing once the other side has closed it."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
