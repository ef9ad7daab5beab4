"""Texts as ctm-think writes them: on a terminal, as plain text and as JSON, against a model on a real port."""

import asyncio
import io
import json
import re
import sys
from typing import Any

import numpy as np
import pytest
from fake_thinker import FakeThinker
from fake_thinker import served as fake_served
from rich.console import Console
from scripted_text import TICKS, ticks_of
from test_serving_text_rpc import BOOK, FOLLOWING, PROMPT, serving

from serving.client import Answer, ChainEnd, StopReason, Summary
from serving.terminal.arguments import parser
from serving.terminal.writing import Writing, printable
from serving.think import main

MEAN_TICKS = sum(ticks_of(token) for token in BOOK[:-1]) / (len(BOOK) - 1)


async def think(*arguments: str, **settings: Any) -> int:
    async with serving(**settings) as server:
        common = ["--address", server.address, "--model", "verses", "--temperature", "0"]
        return await asyncio.to_thread(main, [*common, *arguments])


def links(count: int = len(BOOK) - 1) -> list[str]:
    return ["--max-links", str(count)]


async def test_plain_text_where_there_is_no_terminal(capsys):
    assert await think(*links(), "--seed", "7", PROMPT) == 0
    last = f"{len(BOOK) - 1} tokens, {MEAN_TICKS:.1f} ticks each on average, seed 7"
    assert capsys.readouterr().out == f"{PROMPT}{FOLLOWING}\n{last}\n"


async def test_one_text_after_another(capsys):
    assert await think(*links(), PROMPT, f"{PROMPT} the beginning") == 0
    assert capsys.readouterr().out.startswith(f"{PROMPT}{FOLLOWING}\n{PROMPT} the beginning God created the")


async def test_the_prompt_may_come_from_standard_input(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(PROMPT.encode() + b"\n")}))
    assert await think(*links(2), "-") == 0
    assert capsys.readouterr().out.startswith(f"{PROMPT} the")


async def test_json_lines_for_scripts(capsys):
    assert await think("--json", *links(3), "--top", "2", "--stop", r"\n", PROMPT) == 0
    *answers, summary = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["event"] for answer in answers] == ["answer"] * 3
    assert [(answer["link"], answer["token"], answer["ticks_used"]) for answer in answers] == [
        (link, BOOK[link + 1], ticks_of(BOOK[link])) for link in range(3)
    ]
    assert [len(answer["top"]) for answer in answers] == [2, 2, 2]
    assert [answer["chain_end"] for answer in answers] == [None, None, "MAX_LINKS"]
    assert (summary["event"], summary["texts"]) == ("summary", ["".join(answer["text"] for answer in answers)])
    assert isinstance(summary["seed"], int)


async def test_a_text_ends_before_any_of_its_stop_texts(capsys):
    assert await think(*links(5), "--stop", "nowhere", "--stop", " the", PROMPT) == 0
    assert capsys.readouterr().out.startswith(f"{PROMPT}\n1 token, ")


def test_a_stop_text_may_be_a_line_end():
    assert parser().parse_args(["--stop", r"\n\n", "--stop", "and", "In"]).stop == ["\n\n", "and"]


def test_a_stop_text_is_a_text(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--stop", "a\udcff", "In"])
    assert r"argument --stop: 'a\udcff' is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param([""], "input 'text', row 0: got an empty text", id="an empty prompt"),
        pytest.param(["the earth " * 20], "row 0: got 100 tokens, expected at most 16", id="a long prompt"),
        pytest.param(["a\udcff"], r"'a\udcff': got no UTF-8 at 1, expected a text", id="bytes of no text"),
        pytest.param(["--max-links", "65", "In"], "chain.max_links: got 65, expected 1 to 64", id="too many links"),
        pytest.param(["--top-p", "0", "In"], "top_p: got 0.0, expected a share in (0, 1]", id="no share"),
    ],
)
async def test_bad_news_is_one_line_and_status_1(capsys, arguments, said):
    assert await think(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("ctm-think")]
    assert len(lines) == 1
    assert re.sub(r"\d+ tokens", "100 tokens", said) in re.sub(r"\d+ tokens", "100 tokens", lines[0])


async def test_standard_input_that_is_no_text(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(b"ab\xff")}))
    assert await think("-") == 1
    assert "standard input: got byte 0xff at 2, expected UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--max-links", "--temperature", "--top-k", "--top-p", "--stop", "--seed"])
def test_what_means_nothing_to_models_of_pictures(capsys, flag):
    with fake_served(FakeThinker()) as thinker:
        assert main(["--address", thinker.address, "--model", "digits", flag, "1", "seven.png"]) == 1
    assert f"digits is no model of text: {flag} means nothing to it" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--attention", "--invert", "--no-invert"])
async def test_what_means_nothing_to_models_of_text(capsys, flag):
    assert await think(flag, PROMPT) == 1
    assert f"verses is a model of text: {flag} means nothing to it" in capsys.readouterr().err


# ---- the screen


def screen(*, colour: bool = True) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor" if colour else None,
        width=60,
        no_color=not colour,
    )


def written(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def answer(row: int, text: str, ticks: int, end: ChainEnd = ChainEnd.GOES_ON) -> Answer:
    return Answer(
        row=row,
        link=0,
        ticks_used=ticks,
        answer_tick=ticks,
        certainty=0.5,
        stop_reason=StopReason.CERTAIN,
        abstained=False,
        outputs={"token": np.array(5)},
        text=text,
        chain_end=end,
    )


def summary(*texts: str) -> Summary:
    return Summary(
        abstain_mask=(False,) * len(texts),
        abstentions=(0,) * len(texts),
        ticks_used=12,
        queue_seconds=0.0,
        think_seconds=0.0,
        model="verses",
        version=1,
        seed=9,
        texts=texts,
    )


def ground(text: str, part: str) -> str:
    """The colour behind a part of what was written; empty for none."""
    before = text[: text.index(part)]
    codes = re.findall(r"\x1b\[([\d;]*)m", before)
    found = re.search(r"48;2;([\d;]+)", codes[-1] if codes else "")
    return found[1] if found else ""


def strength(colour: str) -> int:
    """How far a colour is from grey."""
    parts = [int(part) for part in colour.split(";")]
    return max(parts) - min(parts)


def test_more_ticks_have_a_stronger_shade():
    console = screen()
    writing = Writing(console, ["P"], model="verses/1", max_ticks=8)
    for ticks, text in ((1, "one"), (2, "two"), (5, "five"), (8, "eight")):
        writing.record(answer(0, text, ticks))
    text = written(console).partition("P")[2]
    assert ground(text, "one") == ""
    shades = [strength(ground(text, part)) for part in ("two", "five", "eight")]
    assert shades == sorted(shades)
    assert len(set(shades)) == 3


def test_the_legend_says_what_the_shades_mean():
    console = screen()
    writing = Writing(console, ["P"], model="verses/1", max_ticks=8)
    writing.record(answer(0, "x", 8))
    legend = written(console).splitlines()[0]
    assert re.sub(r"\x1b\[[\d;]*m", "", legend) == "verses/1  ticks  1  2-3  4  5  6-7  8 "
    assert ground(legend, " 8 ") == ground(written(console).splitlines()[1], "x")


@pytest.mark.parametrize("most", [1, 2, 3, 50])
def test_a_legend_for_any_tick_budget(most):
    console = screen()
    Writing(console, ["P"], model="m/1", max_ticks=most).record(answer(0, "x", most))
    numbers = re.findall(r"\d+", re.sub(r"\x1b\[[\d;]*m", "", written(console).splitlines()[0]).partition("ticks")[2])
    assert (numbers[0], numbers[-1]) == ("1", str(most))


def test_without_colours_it_is_the_text_alone():
    console = screen(colour=False)
    writing = Writing(console, ["P"], model="verses/1", max_ticks=8)
    writing.record(answer(0, " x", 8, ChainEnd.MAX_LINKS))
    writing.record(summary(" x"))
    assert re.sub(r"\x1b\[[\d;]*m", "", written(console)) == "P x\n1 token, 12.0 ticks each on average, seed 9\n"
    assert "48;" not in written(console)


def test_text_that_came_late_has_the_shade_of_the_longest_thought_behind_it():
    console = screen()
    writing = Writing(console, ["P"], model="verses/1", max_ticks=8)
    for text, ticks in (("", 8), ("late", 1), ("next", 1)):
        writing.record(answer(0, text, ticks))
    text = written(console).partition("P")[2]
    assert ground(text, "late") != ""
    assert ground(text, "next") == ""


def test_rows_are_written_one_after_another_whichever_comes_first():
    console = screen(colour=False)
    writing = Writing(console, ["A", "B", "C"], model="verses/1", max_ticks=TICKS)
    writing.record(answer(1, "b", 1, ChainEnd.MAX_LINKS))
    writing.record(answer(0, "a", 1))
    assert written(console) == "Aa"
    writing.record(answer(0, "a", 1, ChainEnd.END_TOKEN))
    assert written(console) == "Aaa\nBb\nC"
    writing.record(answer(2, "c", 1))
    writing.record(summary("aa", "b", "cd"))
    assert re.sub(r"\x1b\[[\d;]*m", "", written(console)) == (
        "Aaa\nBb\nCcd\n4 tokens, 3.0 ticks each on average, seed 9, interrupted\n"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("a\tb\nc", "a\tb\nc", id="tabs and line ends"),
        pytest.param("\x1b[31mred", "␛[31mred", id="an escape"),
        pytest.param("a\rb\x00\x07\x7f", "a␍b␀␇␡", id="others"),
        pytest.param("\x9b31m", "\ufffd31m", id="an escape of one character"),
    ],
)
def test_no_text_commands_the_terminal(text, shown):
    assert printable(text) == shown
