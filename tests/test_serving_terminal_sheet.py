"""Images as ctm-think draws them out of noise: lines, files and screens, against a model on a real port."""

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_painter import PAINTER, SIDE, STEPS, TICKS, FakePainter, picture_of, ticks_of
from fake_thinker import FakeThinker, served
from PIL import Image, ImageSequence
from rich.console import Console
from scripted_diffusion import BUNDLE, ScriptedDiffusion
from scripted_diffusion import STEPS as DOTS_STEPS
from scripted_server import scripted_server

from protos import ctm_bundle_pb2 as bundle_pb2
from serving import errors
from serving.client import Answer, AsyncThinking, ChainEnd, Event, StopReason, Summary
from serving.tensors import array
from serving.terminal.drawing import labels_of
from serving.terminal.image_files import side_by_side
from serving.terminal.images import UnfitInput
from serving.terminal.live import show_live
from serving.terminal.sheet import Row, Sheet, brightness
from serving.terminal.sheet_view import SheetView
from serving.think import main


@pytest.fixture(scope="module")
def server() -> Iterator[FakePainter]:
    with served(FakePainter()) as running:
        yield running


@pytest.fixture
def painter(server: FakePainter) -> FakePainter:
    server.asked.clear()
    server.diverging = server.out_of_time_after = server.late_failure = None
    return server


def think(painter: FakeThinker, *arguments: str) -> int:
    return main(["--address", painter.address, "--model", painter.manifest.name, *arguments])


# ---- lines


def test_plain_lines_where_there_is_no_terminal(painter: FakePainter, capsys: Any):
    assert think(painter, "--class", "dark", "--class", "light", "--steps", "4", "--seed", "9") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "dark[0]   step 1/4  certainty 0.25  out of ticks after 1, abstained",
        "light[1]  step 1/4  certainty 0.25  out of ticks after 2, abstained",
        "dark[0]   step 2/4  certainty 0.50  out of ticks after 2",
    ]
    assert len(lines) == 8
    said = r"2 images, 20 ticks, 2\.5 a step, 2 of 8 steps abstained, seed 9, [\d.]+ m?s"
    assert re.fullmatch(said, last)


def test_json_lines_carry_the_pixels(painter: FakePainter, capsys: Any):
    assert think(painter, "--json", "--class", "light", "--images-every", "3") == 0
    *answers, summary = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["link"] for answer in answers if "image" in answer] == [2, 5, STEPS - 1]
    assert answers[-1]["image"] == answers[-1]["estimate"] == picture_of(2, 1.0).tolist()
    assert answers[0]["class"] == "light"
    assert (answers[0]["level"], answers[-1]["level"]) == (86, -1)
    assert [answer["ticks_used"] for answer in answers] == [ticks_of(0, link) for link in range(STEPS)]
    assert [answer["abstained"] for answer in answers] == [True, True, *[False] * (STEPS - 2)]
    assert [answer["chain_end"] for answer in answers] == [*[None] * (STEPS - 1), "MAX_LINKS"]
    assert (summary["event"], summary["abstentions"], summary["seed"]) == ("summary", [2], 12345)


def test_rows_are_dealt_round_the_classes_and_options_reach_the_server(painter: FakePainter):
    drawing = "--class light --class 0 --rows 5 --steps 3 --eta 0.5 --stride 2 --images-every 2"
    stopping = "--seed 18446744073709551615 --certainty-threshold 0.5 --max-ticks 2 --abstain-below 0.25 --timeout 9"
    assert think(painter, *drawing.split(), *stopping.split()) == 0
    (asked,) = painter.asked
    assert [tensor.name for tensor in asked.inputs] == ["label"]
    labels = array(asked.inputs[0])
    assert (labels.dtype, labels.tolist()) == (np.int64, [2, 0, 2, 0, 2])
    options = asked.chain.options
    integers = {name: value.integer for name, value in options.items() if name != "eta"}
    assert (integers, options["eta"].number) == ({"steps": 3, "stride": 2, "every": 2}, 0.5)
    assert (asked.chain.seed, asked.version, asked.stream.every) == (2**64 - 1, PAINTER.version, 0)
    assert (asked.stop.certainty_threshold, asked.stop.max_ticks, asked.abstain_below) == (0.5, 2, 0.25)
    assert asked.timeout_seconds == 9.0


def test_what_is_not_asked_for_is_the_servers_to_say(painter: FakePainter):
    assert think(painter, "--class", "1") == 0
    (asked,) = painter.asked
    assert set(asked.chain.options) == {"every"}
    assert not asked.chain.HasField("seed")
    assert not asked.chain.HasField("max_links")


# ---- bad news


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--class", "blue"], "--class: got 'blue', expected one of dark, grey, light", id="unknown class"),
        pytest.param(["--class", "3"], "--class: got '3', expected one of dark, grey, light", id="number too large"),
        pytest.param(["--class", "-1"], "--class: got '-1', expected one of dark", id="number below 0"),
        pytest.param(["--class", ""], "--class: got '', expected one of dark", id="no name"),
        pytest.param(["--class", "1", "--steps", "101"], "steps: got 101, expected 1 to 100", id="too many steps"),
        pytest.param(
            ["seven.png"], "a model that draws: it takes --class and no INPUT, got 'seven.png'", id="an input file"
        ),
        pytest.param(["--class", "1", "seven.png"], "takes --class and no INPUT, got 'seven.png'", id="both"),
        pytest.param(
            ["--class", "1", "--output", "no/where/a.png"], "there is no folder no/where", id="no folder for the output"
        ),
        *[
            pytest.param(["--class", "1", *flag], f"squares is a model that draws: {flag[0]} means nothing", id=flag[0])
            for flag in (["--temperature", "1"], ["--max-links", "9"], ["--stop", "x"], ["--attention"], ["--invert"])
        ],
    ],
)
def test_bad_news_is_one_line_and_status_1(painter: FakePainter, capsys: Any, arguments: list[str], said: str):
    assert think(painter, *arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ctm-think: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--class", "7", "--rows", "0"], "'0' is not a whole number from 1 to 65535", id="no rows"),
        pytest.param(["--class", "7", "--steps", "0"], "argument --steps: '0' is not a whole number", id="no steps"),
        pytest.param(["--class", "7", "--eta", "1.5"], "argument --eta: '1.5' is not a number from 0 to 1", id="eta"),
        pytest.param(["--class", "7", "--seed", "-1"], "argument --seed: '-1' is not a whole number", id="seed"),
        pytest.param(["--class", "7", "--abstain-below", "2"], "'2' is not a number from 0 to 1", id="abstain below"),
        pytest.param(["--class", "7", "--output", "a.bmp"], "'a.bmp' ends in none of .png, .gif", id="kind of file"),
        pytest.param(["--class", "\udcff"], r"'\udcff' is not UTF-8", id="a class of other bytes"),
        pytest.param(["--rows", "4"], "are required: INPUT, --class of a model that draws, or --input", id="no class"),
    ],
)
def test_bad_usage_is_status_2(arguments: list[str], said: str, capsys: Any):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--class", "--rows", "--steps", "--eta", "--stride", "--images-every", "--output"])
def test_what_means_nothing_to_models_that_do_not_draw(capsys: Any, flag: str):
    text = bundle_pb2.Manifest(name="verses", version=1, chain="text")
    value = "a.png" if flag == "--output" else "1"
    with served(FakeThinker()) as thinker:
        assert think(thinker, flag, value, "seven.png") == 1
        assert f"digits is no model that draws: {flag} means nothing to it" in capsys.readouterr().err
        thinker.manifest = text
        assert think(thinker, flag, value, "In the beginning") == 1
        assert f"verses is a model of text: {flag} means nothing to it" in capsys.readouterr().err


def test_classes_without_names_are_numbers():
    manifest = bundle_pb2.Manifest()
    manifest.CopyFrom(PAINTER)
    manifest.diffusion.ClearField("classes")
    assert labels_of(manifest, ["2", "0"]) == [2, 0]
    with pytest.raises(UnfitInput, match=r"got 'dark', expected one of 0, 1, 2"):
        labels_of(manifest, ["dark"])


def test_a_name_that_is_a_number_is_a_name():
    manifest = bundle_pb2.Manifest(diffusion=bundle_pb2.Diffusion(classes=["1", "0"]))
    assert labels_of(manifest, ["1", "0"]) == [0, 1]


# ---- files


def placed(pixels: np.ndarray, index: int) -> np.ndarray:
    """One image of a file, [SIDE, SIDE], of the middles of its enlarged pixels."""
    times = 140 // SIDE
    left = 8 + index * (SIDE * times + 8)
    return pixels[8 : 8 + SIDE * times, left : left + SIDE * times][times // 2 :: times, times // 2 :: times]


def test_a_png_has_the_last_images_side_by_side(painter: FakePainter, tmp_path: Path):
    path = tmp_path / "a.PNG"
    assert think(painter, "--class", "dark", "--class", "light", "--images-every", "0", "--output", str(path)) == 0
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        pixels = np.asarray(image)
    assert pixels.shape == (138 + 16, 2 * 138 + 24)
    np.testing.assert_array_equal(placed(pixels, 0), 0)
    np.testing.assert_array_equal(placed(pixels, 1), 255)


@pytest.mark.parametrize(
    ("every", "links"),
    [
        pytest.param("1", range(1, STEPS + 1), id="each step"),
        pytest.param("3", [3, 6, 8], id="each third, and the last"),
        pytest.param("0", [8], id="the last alone"),
    ],
)
def test_a_gif_shows_how_they_came_out_of_the_noise(painter: FakePainter, tmp_path: Path, every: str, links: Any):
    path = tmp_path / "a.gif"
    assert think(painter, "--class", "grey", "--images-every", every, "--output", str(path)) == 0
    with Image.open(path) as image:
        frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(image)]
    assert len(frames) == len(links)
    for frame, link in zip(frames, links, strict=True):
        expected = brightness(picture_of(1, link / STEPS)) * 255
        np.testing.assert_allclose(placed(frame, 0), expected, atol=1)


def test_many_images_go_on_below():
    images = [np.full((SIDE, SIDE), -1.0)] * 11 + [None]
    pixels = side_by_side(images, (SIDE, SIDE))
    assert pixels.shape == (2 * 146 + 8, 10 * 146 + 8)
    assert (pixels == 0).sum() == 11 * 138**2


async def test_a_server_draws_and_the_same_seed_draws_the_same_again(tmp_path: Path, capsys: Any):
    drawing = "--model dots --class plain --rows 3 --seed 5 --eta 0 --abstain-below 1"

    async def draw(name: str) -> bytes:
        async with scripted_server(bundle=BUNDLE, backend=ScriptedDiffusion()) as running:
            where = ["--address", running.address, "--output", str(tmp_path / name)]
            assert await asyncio.to_thread(main, [*drawing.split(), *where]) == 0
        return (tmp_path / name).read_bytes()

    assert await draw("a.png") == await draw("b.png")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * (3 * DOTS_STEPS + 1)
    assert re.fullmatch(r"3 images, \d+ ticks, \S+ a step, 12 of 12 steps abstained, seed 5, .*s", lines[-1])
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (3 * (3 * 46 + 8) + 8, 2 * 46 + 16)
        assert len(set(np.asarray(image).ravel().tolist())) > 9, "each row has noise of its own"


def test_an_output_that_cannot_be_written_is_named(painter: FakePainter, tmp_path: Path, capsys: Any):
    (tmp_path / "folder.gif").mkdir()
    assert think(painter, "--class", "1", "--output", str(tmp_path / "folder.gif")) == 1
    assert "folder.gif: is a folder" in capsys.readouterr().err
    assert not painter.asked, "found out before anything is drawn"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named(painter: FakePainter, tmp_path: Path, capsys: Any):
    (tmp_path / "a.png").symlink_to("/dev/full")
    assert think(painter, "--class", "1", "--output", str(tmp_path / "a.png")) == 1
    captured = capsys.readouterr()
    assert "seed 12345" in captured.out
    assert re.fullmatch(r"ctm-think: \S+a\.png: No space left on device\n", captured.err)


def test_out_of_time_leaves_the_images_so_far(painter: FakePainter, tmp_path: Path, capsys: Any):
    painter.out_of_time_after = 4
    assert think(painter, "--class", "dark", "--output", str(tmp_path / "a.png")) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(", interrupted")
    with Image.open(tmp_path / "a.png") as image:
        stripes = brightness(picture_of(0, 0.5)) * 255
        np.testing.assert_allclose(placed(np.asarray(image), 0), stripes, atol=1)


def test_a_row_that_diverges_leaves_the_others_alone(painter: FakePainter, capsys: Any):
    painter.diverging = 0
    assert think(painter, "--class", "dark", "--class", "light", "--steps", "3") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["dark[0]", "light[1]"] * 2 + ["light[1]"]
    assert lines[2].endswith("numbers no longer finite after 2")
    assert last.endswith(", interrupted")


def test_a_request_that_fails_writes_nothing(painter: FakePainter, tmp_path: Path, capsys: Any):
    painter.break_after, painter.late_failure = 3, errors.BackendFailed("the finish failed")
    assert think(painter, "--class", "dark", "--output", str(tmp_path / "a.png")) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert captured.err == "ctm-think: the finish failed\n"
    assert not (tmp_path / "a.png").exists()


# ---- the screen


def screen(width: int = 80, height: int = 24) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)


def drawn(view: SheetView, console: Console) -> list[str]:
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip("\n").split("\n")


def sheet(rows: int = 1, *, size: tuple[int, int] = (14, 14), steps: int = 20) -> Sheet:
    return Sheet(
        model="squares/2",
        threshold=0.9,
        abstain_below=0.3,
        max_ticks=TICKS,
        steps=steps,
        size=size,
        rows=[Row(name=f"class {row}") for row in range(rows)],
        began=0.0,
    )


def link(number: int, row: int = 0, **fields: Any) -> Answer:
    usual = {"row": row, "link": number, "ticks_used": 2, "answer_tick": 2, "certainty": 0.5, "abstained": False}
    return Answer(**(usual | {"stop_reason": StopReason.CERTAIN, "outputs": {"image": np.zeros((14, 14))}} | fields))


def summary(*abstentions: int) -> Summary:
    return Summary(
        abstain_mask=(False,) * len(abstentions),
        abstentions=abstentions,
        ticks_used=40,
        queue_seconds=0.0,
        think_seconds=0.0,
        model="squares",
        version=2,
        seed=3,
    )


@pytest.mark.parametrize(("width", "height"), [(20, 24), (80, 24), (200, 60)])
@pytest.mark.parametrize("size", [(6, 6), (14, 14), (28, 28), (5, 30)])
@pytest.mark.parametrize("rows", [1, 4, 12])
def test_nothing_is_larger_than_the_screen(width: int, height: int, size: tuple[int, int], rows: int):
    shown = sheet(rows, size=size)
    image = {"image": np.random.default_rng(0).normal(0, 3, size)}
    for number in range(20):
        for row in range(rows):
            shown.record(link(number, row, outputs=image, ticks_used=TICKS, abstained=row % 2 == 1), 0.1)
    lines = drawn(SheetView(shown, running=True), screen(width, height))
    assert max(map(len, lines)) <= width
    assert len(lines) <= height


def test_a_card_says_how_far_how_sure_how_long_and_that_it_abstained():
    shown = sheet()
    for number, (ticks, abstained) in enumerate([(1, False), (4, True), (3, True)]):
        shown.record(link(number, ticks_used=ticks, certainty=0.25, abstained=abstained), 0.1)
    text = "\n".join(drawn(SheetView(shown, running=True), screen()))
    assert "squares/2  20 steps, certain from 0.90, abstains (×) below 0.30" in text
    assert re.search(r"class 0 ─.*▒{14}.*██▎ {5}┊ 0\.25 .*▃××.*3 ticks {6}×.*step 3/20 ─", text, re.DOTALL)


def test_in_the_end_a_card_sums_up_and_a_line_says_how_to_repeat_it():
    shown = sheet(steps=2)
    shown.record(link(0, ticks_used=1, abstained=True), 0.1)
    shown.record(link(1, chain_end=ChainEnd.MAX_LINKS, ticks_used=3), 0.2)
    shown.record(summary(1), 1.25)
    lines = drawn(SheetView(shown, running=False), screen())
    assert re.search(r"4 ticks {4}1 ×.*step 2/2", "\n".join(lines), re.DOTALL)
    assert lines[-1] == "1 image, 40 ticks, 20.0 a step, 1 of 2 steps abstained, seed 3, 1.25 s"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"stop_reason": StopReason.DIVERGED, "chain_end": ChainEnd.INTERRUPTED}, "diverged: 2", id="nan"),
        pytest.param({"chain_end": ChainEnd.INTERRUPTED}, "cut off: 2", id="out of time"),
        pytest.param({}, "cut off: 2", id="the next link still waited"),
    ],
)
def test_a_row_that_ended_early_says_so(fields: dict[str, Any], said: str):
    shown = sheet()
    shown.record(link(0), 0.1)
    shown.record(link(1, **fields), 0.2)
    shown.record(summary(0), 0.3)
    text = "\n".join(drawn(SheetView(shown, running=False), screen()))
    assert said in text
    assert text.endswith("interrupted")


def test_what_was_drawn_last_stays_between_images():
    shown = sheet()
    shown.record(link(0, outputs={"image": np.ones((14, 14))}), 0.1)
    shown.record(link(1, outputs={}), 0.2)
    assert "█" * 14 in "\n".join(drawn(SheetView(shown, running=True), screen()))


def test_what_the_summary_has_is_the_last_word():
    shown = sheet()
    shown.record(link(0), 0.1)
    shown.record(replace(summary(0), outputs={"image": np.ones((1, 14, 14))}), 0.2)
    assert "█" * 14 in "\n".join(drawn(SheetView(shown, running=False), screen()))


def test_noise_is_cut_off_at_black_and_white():
    assert brightness(np.array([[-7.0, -1.0, 0.0, 1.0, 7.0]])).tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]


class Replayed(AsyncThinking):
    """Events at once."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events

    def cancel(self) -> None:
        """Nothing runs."""

    async def _events(self) -> AsyncIterator[Event]:
        for event in self.events:
            yield event


async def test_every_step_is_drawn_even_of_a_server_that_was_faster():
    console = screen()
    ends = [ChainEnd.GOES_ON] * 4 + [ChainEnd.MAX_LINKS]
    events = [link(number, row, chain_end=end) for number, end in enumerate(ends) for row in range(2)]
    await show_live(sheet(2, steps=5), Replayed([*events, summary(0, 0)]), console, SheetView, 0.001)
    assert isinstance(console.file, io.StringIO)
    frames = console.file.getvalue().split("squares/2")[1:]
    steps = [re.findall(r"step (\d)/5", frame) for frame in frames]
    assert [step for step, _ in groupby(steps)] == [[str(number)] * 2 for number in range(6)]
