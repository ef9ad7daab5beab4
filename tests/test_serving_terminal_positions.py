"""What ctm-think makes of mazes and signs: which models they are for, what is refused, and how thoughts are drawn."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from protos import ctm_bundle_pb2 as bundle_pb2
from serving.client import Answer, ClassScore, StopReason, Tick
from serving.terminal.arguments import parser
from serving.terminal.board import Board, Thought
from serving.terminal.images import UnfitInput
from serving.terminal.kinds import Kind, kind_of
from serving.terminal.lines import as_json, plain
from serving.terminal.looking import over_pixels, over_places
from serving.terminal.positions import read_maze

SPEC = bundle_pb2.TensorSpec
MOVES = ("up", "down", "left", "right", "wait")
MAZE = """\
#######
#S....#
#####.#
#...#.#
#.###.#
#....E#
#######"""
TO_THE_END = ["right"] * 4 + ["down"] * 4
COLOURS = {"#": (0, 0, 0), ".": (255, 255, 255), "S": (255, 0, 0), "E": (0, 255, 0)}


def manifest(name: str, shape: list[int], prediction: list[int], labels: tuple[str, ...]) -> bundle_pb2.Manifest:
    return bundle_pb2.Manifest(
        name=name,
        version=1,
        ticks=9,
        inputs=[SPEC(name="x", datatype="FP32", shape=shape, minimum=-1 if len(shape) == 1 else 0, maximum=1)],
        outputs=[SPEC(name="prediction", datatype="FP32", shape=prediction, role=SPEC.PREDICTION)],
        labels=labels,
    )


MAZES = manifest("maze", [3, 7, 7], [10, 5], MOVES)
SIGNS = manifest("parity", [6], [6, 2], ("even", "odd"))


def pixels(drawing: str = MAZE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.array([[COLOURS[place] for place in line] for line in drawing.split("\n")], np.uint8)


def saved(folder: Path, drawing: str = MAZE, times: int = 1) -> str:
    enlarged = pixels(drawing).repeat(times, axis=0).repeat(times, axis=1)
    Image.fromarray(enlarged).save(folder / "a.png")
    return str(folder / "a.png")


@pytest.mark.parametrize(
    ("shown", "kind"),
    [
        pytest.param(MAZES, "Routes", id="moves through a picture in colour"),
        pytest.param(SIGNS, "Signs", id="a label at each number of a line"),
        pytest.param(manifest("mnist", [1, 7, 7], [10], tuple("0123456789")), "Classes", id="one class"),
        pytest.param(manifest("maze", [3, 7, 7], [10, 5], ("n", "s", "w", "e", "stay")), "Classes", id="unknown moves"),
        pytest.param(manifest("maze", [1, 7, 7], [10, 5], MOVES), "Classes", id="a grey maze has no start"),
        pytest.param(manifest("tags", [6], [5, 2], ("a", "b")), "Classes", id="positions that are not the signs'"),
        pytest.param(bundle_pb2.Manifest(inputs=[SPEC(name="x")]), "Classes", id="nothing known"),
    ],
)
def test_the_manifest_says_what_kind_of_model_it_is(shown: bundle_pb2.Manifest, kind: str):
    assert type(kind_of(shown)).__name__ == kind


# ---- inputs


@pytest.mark.parametrize("times", [1, 2, 16])
def test_a_maze_is_read_pixel_by_pixel_however_large_it_is_drawn(tmp_path: Path, times: int):
    (row,) = kind_of(MAZES).load(saved(tmp_path, times=times), None)
    np.testing.assert_array_equal(row.values, pixels().transpose(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("drawing", "said"),
    [
        pytest.param("###\n#S#\n###", r"a\.png: got 3 x 3 pixels, expected 7 x 7, or a whole number", id="small"),
        pytest.param(MAZE + "\n#######", r"got 7 x 8 pixels, expected 7 x 7", id="one line more"),
        pytest.param(MAZE.replace("S", "."), r"a\.png: got 0 red \(start\) and 1 green \(end\)", id="no start"),
        pytest.param(MAZE.replace("S.", "SS"), r"got 2 red \(start\) and 1 green", id="two starts"),
        pytest.param(MAZE.replace("E", "#"), r"got 1 red \(start\) and 0 green", id="no end"),
    ],
)
def test_what_is_no_maze_of_the_models_is_refused(tmp_path: Path, drawing: str, said: str):
    with pytest.raises(UnfitInput, match=said):
        kind_of(MAZES).load(saved(tmp_path, drawing), None)


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        pytest.param("+-++-+", [1, -1, 1, 1, -1, 1], id="typed"),
        pytest.param("−+++++", [-1, 1, 1, 1, 1, 1], id="a minus as books print it"),
        pytest.param("------", [-1] * 6, id="nothing but minus"),
    ],
)
def test_signs_are_typed(typed: str, values: list[int]):
    (row,) = kind_of(SIGNS).load(typed, None)
    assert row.values.tolist() == values
    assert row.values.dtype == np.float32


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param("+-+", r"\+-\+: got 3 signs, expected 6", id="too few"),
        pytest.param("+-++-+-", r"got 7 signs, expected 6", id="too many"),
        pytest.param("+-x+-+", r"got '\+-x\+-\+', expected 6 signs, as in \+-\+\+-, or a \.npy file", id="no sign"),
        pytest.param("a.png", r"got 'a\.png', expected 6 signs", id="a picture"),
    ],
)
def test_what_is_no_sequence_of_the_models_is_refused(source: str, said: str):
    with pytest.raises(UnfitInput, match=said):
        kind_of(SIGNS).load(source, None)


def test_an_array_of_signs_holds_only_signs(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.array([[1, -1, 1, 1, -1, 1], [1, 1, 1, 1, 1, 1]], np.float32))
    rows = kind_of(SIGNS).load(str(tmp_path / "a.npy"), None)
    assert [row.name for row in rows] == ["a.npy[0]", "a.npy[1]"]
    np.save(tmp_path / "a.npy", np.array([1, 0, 1, 1, -1, 1], np.float32))
    with pytest.raises(UnfitInput, match=r"a\.npy, values: got 0\.0, expected 1 and -1 alone"):
        kind_of(SIGNS).load(str(tmp_path / "a.npy"), None)
    with pytest.raises(UnfitInput, match="no light and dark"):
        kind_of(SIGNS).load("+-+-+-", True)


@pytest.mark.parametrize(
    ("arguments", "inputs"),
    [
        pytest.param(["-++-"], ["-++-"], id="a minus first"),
        pytest.param(["----", "--json"], ["----"], id="nothing but minus, and an option"),
        pytest.param(["--", "-+", "a.png"], ["-+", "a.png"], id="after two dashes"),
        pytest.param(["-"], ["-"], id="standard input"),
    ],
)
def test_signs_are_no_options(arguments: list[str], inputs: list[str]):
    assert parser().parse_args(arguments).inputs == inputs


# ---- walks


@pytest.mark.parametrize(
    ("moves", "said"),
    [
        pytest.param([*TO_THE_END, "wait", "wait"], "reaches the end in 8 moves", id="arrives and waits"),
        pytest.param(TO_THE_END, "reaches the end in 8 moves", id="arrives with the last move"),
        pytest.param([*TO_THE_END, "left"], "stops short after 9 moves", id="passes the end"),
        pytest.param(["right", "wait", "right"], "stops short after 1 move", id="waits on its way"),
        pytest.param(["wait"], "stops short after 0 moves", id="never leaves"),
        pytest.param(["right", "down"], "runs into a wall at move 2", id="into a wall"),
        pytest.param(["left"], "runs into a wall at move 1", id="into the outer wall"),
    ],
)
def test_where_moves_lead(moves: list[str], said: str):
    maze = read_maze("a.png", pixels().transpose(2, 0, 1) / 255)
    assert maze.walk(moves).outcome() == said


def test_outside_is_wall():
    open_maze = read_maze("a.png", pixels("S.\n.E").transpose(2, 0, 1) / 255)
    assert open_maze.walk(["up"]).blocked == (-1, 0)
    assert open_maze.walk(["right", "right"]).outcome() == "runs into a wall at move 2"


# ---- where it looks


def looking(weights: list[list[float]]) -> Tick:
    return Tick(row=0, link=0, tick=1, certainty=0.5, details={"attention": np.array(weights, np.float32)})


def test_attention_lies_over_cells_and_over_pixels():
    tick = looking([[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.0, 0.5]])
    assert over_places(tick, 4).tolist() == [0.5, 1.0, 0.0, 0.5]
    maze = over_pixels(tick, (5, 5))
    assert maze[1::2, 1::2].tolist() == [[0.5, 1.0], [0.0, 0.5]]
    assert maze.sum() == 2.0
    assert over_pixels(tick, (4, 6)).tolist() == [[0.5] * 3 + [1.0] * 3] * 2 + [[0.0] * 3 + [0.5] * 3] * 2


@pytest.mark.parametrize(
    "tick",
    [
        pytest.param(Tick(row=0, link=0, tick=1, certainty=0.5), id="not asked for"),
        pytest.param(looking([[0.5, 0.25, 0.25]]), id="no square of cells, and not the places"),
    ],
)
def test_attention_that_is_not_over_what_is_drawn_is_not_drawn(tick: Tick):
    assert not over_pixels(tick, (5, 5)).any()
    assert not over_places(tick, 4).any()


# ---- the screen


def scores(labels: list[str], of: tuple[str, ...], score: float = 0.9) -> tuple[ClassScore, ...]:
    return tuple(ClassScore(of.index(label), label, score, position) for position, label in enumerate(labels))


def thought_of(kind: Kind, source: str, thoughts: list[list[str]], of: tuple[str, ...], rows: int = 1) -> Board:
    """A board on which every row thinks the same and answers its last thought."""
    loaded = kind.load(source, None) * rows
    board = Board(
        model="m/1",
        threshold=0.8,
        max_ticks=9,
        thoughts=[Thought(row) for row in loaded],
        began=0.0,
        words=kind.words,
        positions=True,
    )
    weights = {"attention": np.eye(9, dtype=np.float32)}
    for row in range(rows):
        for number, labels in enumerate(thoughts, start=1):
            tick = Tick(row=row, link=0, tick=number, certainty=number / 4, top=scores(labels, of), details=weights)
            board.record(tick, 0.1)
        board.record(
            Answer(
                row=row,
                link=0,
                ticks_used=len(thoughts),
                answer_tick=len(thoughts),
                certainty=0.9,
                abstained=False,
                stop_reason=StopReason.CERTAIN,
                top=scores(thoughts[-1], of),
            ),
            0.2,
        )
    return board


def drawn(kind: Kind, board: Board, *, width: int = 80, height: int = 24, running: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(kind.draw(board, running=running))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip("\n").split("\n")


ROUTES = [["up", "wait"], ["right", "right", "down"], [*TO_THE_END, "wait", "wait"]]


def test_a_maze_shows_the_route_and_how_it_came(tmp_path: Path):
    kind = kind_of(MAZES)
    text = "\n".join(drawn(kind, thought_of(kind, saved(tmp_path), ROUTES, MOVES)))
    assert "██→ → → → ↓ ██" in text
    assert "██████████↓ ██" in text
    assert "runs into a wall at move 1" in text
    assert "→→→→↓↓↓↓··  reaches the end in 8 moves" in text
    assert "certain at tick 3" in text


def test_a_wall_that_is_run_into_is_marked(tmp_path: Path):
    kind = kind_of(MAZES)
    text = "\n".join(drawn(kind, thought_of(kind, saved(tmp_path), ROUTES[:2], MOVES)))
    assert "██→ → ↓     ██" in text
    assert "██████××██  ██" in text


def test_signs_stand_above_their_answers():
    kind = kind_of(SIGNS)
    thoughts = [["even"] * 6, ["even", "odd", "odd", "odd", "even", "even"]]
    lines = drawn(kind, thought_of(kind, "+-++-+", thoughts, ("even", "odd")))
    assert lines[1].endswith("+ - + + - +")
    assert lines[3].rstrip().endswith("○ ● ● ● ○ ○")
    assert lines[1].index("+ -") == lines[3].index("○ ●") == lines[4].index("○ ●")
    assert lines[4].startswith("certain at tick 2")
    assert lines[5].rstrip() == "○ even  ● odd"


@pytest.mark.parametrize("rows", [1, 2, 7, 20])
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("model", ["maze", "parity"])
def test_nothing_is_wider_than_the_screen_nor_higher_while_it_runs(
    tmp_path: Path, rows: int, width: int, running: bool, model: str
):
    if model == "maze":
        kind, source, of, thoughts = kind_of(MAZES), saved(tmp_path), MOVES, ROUTES * 8
    else:
        kind, source, of, thoughts = kind_of(SIGNS), "+-++-+", ("even", "odd"), [["even"] * 6] * 24
    lines = drawn(kind, thought_of(kind, source, thoughts, of, rows), width=width, height=24, running=running)
    assert max(map(len, lines)) <= width
    assert len(lines) <= 24 or not running


# ---- lines


@pytest.mark.parametrize(
    ("shown", "source", "labels", "said"),
    [
        pytest.param(MAZES, "maze", [*TO_THE_END, "wait", "wait"], "4 right, 4 down", id="a route"),
        pytest.param(MAZES, "maze", ["wait"] * 3, "wait", id="no move"),
        pytest.param(SIGNS, "+-++-+", ["even", "odd", "odd"], "even odd odd", id="signs"),
    ],
)
def test_lines_say_the_label_of_each_position(
    tmp_path: Path, shown: bundle_pb2.Manifest, source: str, labels: list[str], said: str
):
    kind = kind_of(shown)
    of = tuple(shown.labels)
    board = thought_of(kind, saved(tmp_path) if source == "maze" else source, [labels], of)
    tick, answer = board.thoughts[0].ticks[0], board.thoughts[0].answer
    assert answer is not None
    assert plain(board, tick).endswith(f"certainty 0.25  {said}")
    assert f"  answer {said}  certainty 0.90" in plain(board, answer)
    assert f'"labels": {labels}'.replace("'", '"') in as_json(board, answer, 0.1)
    assert '"details": {"attention": [[1.0' in as_json(board, tick, 0.1)
    assert '"top"' not in as_json(board, tick, 0.1)
