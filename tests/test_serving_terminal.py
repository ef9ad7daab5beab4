"""What ctm-think makes of files, and of thoughts on a screen of any size."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from protos import ctm_bundle_pb2 as bundle_pb2
from serving.client import Answer, AsyncThinking, ClassScore, Event, StopReason, Summary, Tick, Unavailable
from serving.terminal.board import Board, Thought, outcome
from serving.terminal.draw import bar, certainty_style, picture, sparkline
from serving.terminal.images import Loaded, UnfitInput, load, the_input, unit
from serving.terminal.live import show_live
from serving.terminal.view import View

SPEC = bundle_pb2.TensorSpec


def spec(
    *shape: int, datatype: str = "FP32", low: float | None = 0.0, high: float | None = 1.0
) -> bundle_pb2.TensorSpec:
    return SPEC(name="image", datatype=datatype, shape=shape, minimum=low, maximum=high)


GREY = spec(1, 28, 28)


def stroke(size: int = 28, *, ink: int = 255, paper: int = 0) -> Image.Image:
    """A square of ink in the middle half of the paper."""
    pixels = np.full((size, size), paper, np.uint8)
    pixels[size // 4 : -size // 4, size // 4 : -size // 4] = ink
    return Image.fromarray(pixels)


def saved(folder: Path, image: Image.Image, name: str = "a.png") -> str:
    image.save(folder / name)
    return str(folder / name)


# ---- files


def test_a_picture_of_the_right_size_is_taken_pixel_by_pixel(tmp_path: Path):
    pixels = np.arange(784, dtype=np.uint32).reshape(28, 28).astype(np.uint8)
    pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1] = 0, 0, 0, 0
    (loaded,) = load(saved(tmp_path, Image.fromarray(pixels)), GREY)
    assert loaded.values.dtype == np.float32
    assert loaded.values.shape == (1, 28, 28)
    np.testing.assert_array_equal(loaded.values[0], pixels.astype(np.float32) / 255)
    assert loaded.name == "a.png"
    assert not loaded.inverted


@pytest.mark.parametrize(
    ("invert", "ink", "paper", "middle", "corner", "noted"),
    [
        pytest.param(None, 255, 0, 1, 0, False, id="light ink stays"),
        pytest.param(None, 0, 255, 1, 0, True, id="dark ink on light paper is inverted, and it is said"),
        pytest.param(False, 0, 255, 0, 1, False, id="unless told not to"),
        pytest.param(True, 255, 0, 0, 1, False, id="inverted when told to"),
    ],
)
def test_dark_ink_on_light_paper(tmp_path: Path, invert, ink, paper, middle, corner, noted):
    (loaded,) = load(saved(tmp_path, stroke(ink=ink, paper=paper)), GREY, invert=invert)
    assert loaded.values[0, 14, 14] == middle
    assert loaded.values[0, 0, 0] == corner
    assert loaded.inverted is noted


def test_another_size_is_fitted_with_its_proportions_kept(tmp_path: Path):
    wide = Image.fromarray(np.full((50, 100), 255, np.uint8))
    (loaded,) = load(saved(tmp_path, wide), GREY, invert=False)
    rows = loaded.values[0].mean(axis=1)
    assert np.flatnonzero(rows > 0.5).tolist() == list(range(7, 21))
    assert rows[:7].max() == 0


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(stroke().convert("1"), id="black and white"),
        pytest.param(stroke().convert("P"), id="palette"),
        pytest.param(stroke().convert("RGB"), id="colour"),
        pytest.param(Image.fromarray(np.asarray(stroke(), np.uint16) * 257), id="16 bits"),
        pytest.param(
            Image.merge("RGBA", [stroke(ink=0)] * 3 + [stroke()]), id="black on nothing is ink on white paper"
        ),
    ],
)
def test_pictures_of_every_kind_say_the_same(tmp_path: Path, image: Image.Image):
    (loaded,) = load(saved(tmp_path, image), GREY)
    np.testing.assert_allclose(loaded.values[0], np.asarray(stroke()) / 255, atol=1 / 255)


@pytest.mark.parametrize(
    ("wanted", "shape"),
    [
        pytest.param(spec(28, 28), (28, 28), id="no channel"),
        pytest.param(spec(3, 28, 28), (3, 28, 28), id="colour"),
        pytest.param(spec(1, 14, 20), (1, 14, 20), id="not square"),
    ],
)
def test_a_picture_takes_the_shape_of_the_input(tmp_path: Path, wanted, shape):
    (loaded,) = load(saved(tmp_path, stroke()), wanted)
    assert loaded.values.shape == shape


def test_values_take_the_range_of_the_input(tmp_path: Path):
    (loaded,) = load(saved(tmp_path, stroke()), spec(1, 28, 28, low=-1, high=3))
    assert (loaded.values.min(), loaded.values.max()) == (-1, 3)
    assert unit(loaded.values, spec(1, 28, 28, low=-1, high=3)).max() == 1
    (loaded,) = load(saved(tmp_path, stroke()), spec(1, 28, 28, datatype="UINT8", low=None, high=None))
    assert loaded.values.dtype == np.uint8
    assert loaded.values.max() == 255


def test_an_array_is_taken_as_it_is_one_row_or_more(tmp_path: Path):
    rows = np.random.default_rng(3).normal(size=(2, 4, 6))
    np.save(tmp_path / "rows.npy", rows)
    loaded = load(str(tmp_path / "rows.npy"), spec(4, 6, low=None, high=None))
    assert [one.name for one in loaded] == ["rows.npy[0]", "rows.npy[1]"]
    np.testing.assert_array_equal(loaded[1].values, rows[1].astype(np.float32))
    np.save(tmp_path / "one.npy", rows[0])
    (one,) = load(str(tmp_path / "one.npy"), spec(4, 6))
    assert one.values.shape == (4, 6)
    np.save(tmp_path / "flat.npy", np.zeros((28, 28)))
    assert load(str(tmp_path / "flat.npy"), GREY)[0].values.shape == (1, 28, 28)


def written(write: Any, *arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    write(stream, *arrays)
    return stream.getvalue()


def headed(header: str) -> bytes:
    """A `.npy` file that is all header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


class Pickled:
    def __reduce__(self) -> Any:
        raise AssertionError("nothing may be unpickled")


@pytest.mark.parametrize(
    ("name", "content", "wanted", "said"),
    [
        pytest.param("missing.png", None, GREY, r"missing\.png: No such file", id="missing"),
        pytest.param("text.png", b"hello", GREY, r"text\.png: not a picture", id="no picture"),
        pytest.param("empty.png", b"", GREY, r"empty\.png: not a picture", id="empty"),
        pytest.param("cut.npy", b"\x93NUMPY\x01\x00", GREY, r"cut\.npy: not a readable \.npy", id="cut off array"),
        pytest.param("bare.npy", b"", GREY, r"bare\.npy: not a readable \.npy", id="empty array"),
        pytest.param(
            "p.png", stroke(), spec(7), r"p\.png: the model takes 'image', FP32 \[7\], which is no", id="input"
        ),
        pytest.param("a.npy", np.zeros(5), spec(7), r"a\.npy, shape: got \[5\], expected \[7\]", id="shape"),
        pytest.param(
            "a.npy", np.zeros((2, 2, 7)), spec(7), r"a\.npy, shape: got \[2, 2, 7\]", id="too many dimensions"
        ),
        pytest.param("a.npy", np.zeros(7), spec(7, datatype="INT64"), r"a\.npy, dtype: got float64", id="dtype"),
        pytest.param("a.npy", np.array([None] * 7), spec(7), r"a\.npy: not a readable .*pickle", id="pickle"),
        pytest.param("z.npy", written(np.savez, np.zeros(7)), spec(7), r"z\.npy: not a readable .*magic", id="npz"),
        pytest.param(
            "a.npy",
            headed("{'descr': '<f8', 'fortran_order': False, 'shape': (1048576, 1048576, 8192)}"),
            spec(7),
            r"a\.npy: not a readable \.npy array \(Unable to allocate",
            id="more than memory holds",
        ),
        pytest.param("a.npy", headed("{'descr': ('"), spec(7), r"a\.npy: not a readable \.npy", id="torn header"),
        pytest.param(
            "a.npy",
            np.array([1.0, -1e300]),
            spec(2),
            r"a\.npy, values: got -1e\+300, expected numbers that float32 holds",
            id="beyond float32",
        ),
        pytest.param(
            "a.npy",
            np.array([1, 300]),
            spec(2, datatype="INT8"),
            r"a\.npy, values: got 300, expected numbers that int8 holds",
            id="beyond int8",
        ),
    ],
)
def test_what_is_unfit_is_named(tmp_path: Path, name, content, wanted, said):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, Image.Image):
        content.save(path)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(UnfitInput, match=said):
        load(str(path), wanted)


def test_a_torn_picture_is_named(tmp_path: Path):
    path = Path(saved(tmp_path, Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UnfitInput, match=r"a\.png: cannot be read as a picture"):
        load(str(path), GREY)


def test_a_picture_too_large_to_be_meant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(tmp_path, stroke(64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with pytest.raises(UnfitInput, match="decompression bomb"):
        load(path, GREY)


def test_a_model_of_several_inputs_is_refused():
    manifest = bundle_pb2.Manifest(name="maze", inputs=[SPEC(name="map"), SPEC(name="start")])
    with pytest.raises(UnfitInput, match=r"maze takes 2 inputs \(map, start\)"):
        the_input(manifest)


# ---- characters


@pytest.mark.parametrize(
    ("value", "mark", "drawn"),
    [
        pytest.param(0.0, None, "        ", id="nothing"),
        pytest.param(0.001, None, "▏       ", id="a little is seen"),
        pytest.param(0.5, None, "████    ", id="half"),
        pytest.param(0.55, None, "████▍   ", id="eighths"),
        pytest.param(1.0, None, "████████", id="all"),
        pytest.param(7.0, None, "████████", id="no more than all"),
        pytest.param(0.5, 0.75, "████  ┊ ", id="short of the mark"),
        pytest.param(0.8, 0.75, "██████▍ ", id="past the mark"),
        pytest.param(0.0, 1.0, "       ┊", id="a mark at the end"),
    ],
)
def test_bars(value, mark, drawn):
    assert bar(value, 8, certainty_style(value), mark=mark).plain == drawn


def test_certainties_grow_and_turn_green():
    assert sparkline([0.0, 0.2, 0.5, 0.99, 1.0]).plain == "▁▂▅██"
    red, green = certainty_style(0.0).color, certainty_style(1.0).color
    assert red.triplet.red > red.triplet.green
    assert green.triplet.green > green.triplet.red


def test_two_pixels_share_a_character():
    dot = np.zeros((1, 4, 4), np.float32)
    dot[0, 0, 0] = 1
    coloured = picture(dot, 28, colour=True)
    assert [line.rstrip() for line in coloured.plain.split("\n")] == ["▀", ""]
    assert coloured.plain.count("\n") == 1
    assert picture(dot, 28, colour=False).plain.split("\n")[0].rstrip() == "▒"
    ones = np.ones((3, 5, 3), np.float32)
    assert picture(ones, 28, colour=False).plain.split("\n") == ["███", "███", "▒▒▒"], "an odd row is filled up"
    assert len(picture(np.ones((224, 224), np.float32), 14, colour=False).plain.split("\n")) == 7


# ---- the screen


def top(label: str = "7", others: int = 2) -> tuple[ClassScore, ...]:
    best = ClassScore(index=7, label=label, score=0.75)
    return (best, *(ClassScore(index=index, label=str(index), score=0.1) for index in range(others)))


def tick(number: int, row: int = 0, **fields: Any) -> Tick:
    return Tick(**({"row": row, "link": 0, "tick": number, "certainty": number / 30, "top": top()} | fields))


def answer(row: int = 0, **fields: Any) -> Answer:
    usual = {"row": row, "link": 0, "ticks_used": 24, "answer_tick": 24, "certainty": 0.8, "abstained": False}
    return Answer(**(usual | {"stop_reason": StopReason.CERTAIN, "top": top()} | fields))


def summary(rows: int = 1) -> Summary:
    no = tuple([False] * rows)
    return Summary(
        abstain_mask=no,
        abstentions=(0,) * rows,
        ticks_used=24,
        queue_seconds=0,
        think_seconds=0,
        model="m",
        version=1,
    )


def board(rows: int = 1) -> Board:
    values = np.ones((1, 28, 28), np.float32)
    thoughts = [Thought(Loaded(f"digit-{row}.png", values)) for row in range(rows)]
    return Board(model="mnist/1", threshold=0.8, max_ticks=24, thoughts=thoughts, began=0.0)


def screen(width: int, height: int = 24, **options: Any) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, **options)


def as_digits(board: Board, *, running: bool) -> View:
    return View(board, GREY, running)


def drawn(view: View, console: Console) -> list[str]:
    console.print(view)
    return console.file.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize(
    ("reason", "ticks_used", "answer_tick", "said"),
    [
        pytest.param(StopReason.CERTAIN, 6, 6, "certain at tick 6", id="certain"),
        pytest.param(StopReason.TICK_BUDGET, 24, 11, "out of ticks after 24, answer of tick 11", id="budget"),
        pytest.param(StopReason.DEADLINE, 0, 0, "out of time after 0", id="never ticked"),
        pytest.param(StopReason.DIVERGED, 3, 2, "numbers no longer finite after 3, answer of tick 2", id="nan"),
    ],
)
def test_why_a_thought_stopped_in_words(reason: StopReason, ticks_used: int, answer_tick: int, said: str):
    assert outcome(answer(stop_reason=reason, ticks_used=ticks_used, answer_tick=answer_tick)) == said


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("label", ["7", "golden retriever of the north"])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_nothing_is_wider_than_the_screen(width: int, label: str, rows: int):
    shown = board(rows)
    for row in range(rows):
        for number in range(1, 25):
            shown.record(tick(number, row, top=top(label, others=9)), 0.1)
        shown.record(answer(row, top=top(label), abstained=row == 1), 0.2)
    lines = drawn(View(shown, GREY, running=False), screen(width))
    assert max(map(len, lines)) <= width
    assert "\n".join(lines).count(label[:6]) >= rows


def test_one_thought_has_a_line_for_each_tick_and_says_how_it_ended():
    shown = board()
    for number in range(1, 25):
        shown.record(tick(number), 0.004)
    shown.record(answer(), 0.009)
    shown.record(summary(), 0.01)
    text = "\n".join(drawn(View(shown, GREY, running=False), screen(80)))
    assert all(f"{number:2d} " in text for number in range(1, 25))
    assert "mnist/1  certain from 0.80, at most 24 ticks" in text
    assert "7  certain at tick 24" in text
    assert "first tick after 4.0 ms, all after 10.0 ms" in text


def test_abstaining_is_said():
    shown = board()
    shown.record(answer(abstained=True), 0.1)
    assert "7?  abstained: certain at tick 24" in "\n".join(drawn(View(shown, GREY, running=False), screen(80)))


@pytest.mark.parametrize("rows", [1, 2, 12])
def test_while_it_runs_the_view_fits_the_screen(rows: int):
    shown = board(rows)
    for number in range(1, 25):
        for row in range(rows):
            shown.record(tick(number, row), 0.1)
    lines = drawn(View(shown, GREY, running=True), screen(80))
    assert len(lines) <= 24
    assert any("24 " in line for line in lines), "the newest tick is there"


def test_what_has_ended_makes_room_for_what_has_not():
    shown = board(12)
    for row in range(12):
        shown.record(tick(1, row), 0.1)
    for row in range(6):
        shown.record(answer(row), 0.2)
    text = "\n".join(drawn(View(shown, GREY, running=True), screen(80)))
    assert "digit-6.png" in text
    assert "digit-0.png" not in text


def test_what_is_no_picture_is_named_instead():
    shown = Board(
        model="m/1",
        threshold=None,
        max_ticks=9,
        thoughts=[Thought(Loaded("a.npy", np.zeros((7,), np.float32)))],
        began=0.0,
    )
    shown.record(tick(1), 0.1)
    text = "\n".join(drawn(View(shown, spec(7), running=False), screen(80)))
    assert "image [7]" in text
    assert "certain from" not in text


class Replayed(AsyncThinking):
    """Events at once, then perhaps an error."""

    def __init__(self, events: list[Event], error: Exception | None = None) -> None:
        self.events, self.error = events, error

    def cancel(self) -> None:
        """Nothing runs."""

    async def _events(self) -> AsyncIterator[Event]:
        for event in self.events:
            yield event
        if self.error:
            raise self.error


async def test_every_tick_is_drawn_even_of_a_thought_that_was_faster():
    console = screen(80, 40)
    await show_live(board(), Replayed([tick(1), tick(2), tick(3), answer(), summary()]), console, as_digits, 0.005)
    frames = console.file.getvalue().split("mnist/1  certain")[1:]
    num_ticks = [sum(certainty in frame for certainty in ("0.03", "0.07", "0.10")) for frame in frames]
    assert sorted(set(num_ticks)) == [0, 1, 2, 3]
    assert num_ticks == sorted(num_ticks)
    assert "certain at tick" in frames[-1]


async def test_an_error_leaves_on_the_screen_what_was_thought():
    console = screen(80, 40)
    with pytest.raises(Unavailable):
        async with asyncio.timeout(10):
            await show_live(board(), Replayed([tick(1)], Unavailable("gone")), console, as_digits, 0.0)
    assert "0.03" in console.file.getvalue()


def test_the_digits_that_ship_fit_as_they_are():
    paths = sorted((Path(__file__).parents[1] / "examples" / "digits").glob("*.png"))
    assert len(paths) >= 12
    assert {path.name[0] for path in paths} == set("0123456789")
    assert {path.name.split("-")[1].removesuffix(".png") for path in paths} == {"easy", "hard"}
    for path in paths:
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((28, 28), "L")
        (loaded,) = load(str(path), GREY)
        assert not loaded.inverted
        assert loaded.values.max() > 0.9
