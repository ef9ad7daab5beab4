"""Mazes: routes that lead from start to end, rows made from their number, and parts that share no maze."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ctm.tasks import TaskConfig, load_task
from ctm.tasks.config import AugmentConfig, MazeConfig
from ctm.tasks.maze import MOVES, OFFSETS, WAIT, draw_maze, share_of

SMALL = MazeConfig(size=4, route=16, shortest=4, train_mazes=30, held_out_rows=20, test_rows=20)
USUAL = MazeConfig(train_mazes=60, held_out_rows=30, test_rows=30)
SIZES = [pytest.param(SMALL, id="4 x 4 cells"), pytest.param(USUAL, id="5 x 5 cells")]


def pixels_of(image: Tensor, colour: tuple[float, float, float]) -> list[list[int]]:
    places: list[list[int]] = (image == torch.tensor(colour)[:, None, None]).all(dim=0).nonzero().tolist()
    return places


def walls_of(image: Tensor) -> Tensor:
    return image.amax(dim=0) == 0


def canonical(image: Tensor) -> bytes:
    """The same for all ways to turn and mirror the walls, whatever the ends are."""
    walls = walls_of(image)
    ways = [torch.rot90(side, turns) for side in (walls, walls.T) for turns in range(4)]
    return min(way.contiguous().numpy().tobytes() for way in ways)


@pytest.mark.parametrize("config", SIZES)
@pytest.mark.parametrize("part", ["train", "held_out", "test"])
def test_the_route_leads_from_the_red_pixel_to_the_green_one_and_waits_there(config: MazeConfig, part: str) -> None:
    task = load_task(TaskConfig(name="maze", maze=config))
    inputs, targets = getattr(task, part).take(torch.arange(len(getattr(task, part))))
    assert (inputs.dtype, inputs.shape[1:]) == (torch.float32, task.input_shape)
    assert (targets.dtype, targets.shape[1:]) == (torch.int64, (config.route,))
    for image, moves in zip(inputs, targets.tolist(), strict=True):
        (here,), (end,) = pixels_of(image, (1, 0, 0)), pixels_of(image, (0, 1, 0))
        route = moves[: moves.index(WAIT)] if WAIT in moves else moves
        assert config.shortest <= len(route) <= config.route
        assert set(moves[len(route) :]) <= {WAIT}
        for move in route:
            here = [here[0] + OFFSETS[move][0], here[1] + OFFSETS[move][1]]
            assert not walls_of(image)[here[0], here[1]], f"{MOVES[move]} runs into a wall"
        assert here == end


@pytest.mark.parametrize("config", SIZES)
def test_one_way_leads_between_any_two_cells(config: MazeConfig) -> None:
    image, _ = draw_maze(config, "train", 0)
    cells = config.size**2
    assert image[1::2, 1::2].all(), "every cell is open"
    assert (image > 0).sum() == cells + (cells - 1), "a tree has one opening less than it has cells"
    assert not image[0::2, 0::2].any(), "corners are walls"


def test_no_maze_that_is_learned_from_is_held_out_or_tested_whichever_way_it_is_turned() -> None:
    shares = {
        part: [share_of(draw_maze(SMALL, part, number)[0]) for number in range(40)]
        for part in ("train", "held_out", "test")
    }
    train, held_out, test = (set(found) for found in shares.values())
    assert train | held_out | test == set(range(8))
    assert not train & (held_out | test)
    assert not held_out & test


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_part_is_chosen_by_walls_alone_whichever_way_they_are_turned(turns: int, mirrored: bool) -> None:
    image, _ = draw_maze(USUAL, "test", 7)
    turned = np.rot90(image.T if mirrored else image, turns)
    assert share_of(turned) == share_of(image)
    assert share_of(np.minimum(image, 1)) == share_of(image), "wherever start and end are"


def test_each_maze_to_learn_from_comes_in_eight_ways() -> None:
    task = load_task(TaskConfig(name="maze", maze=USUAL))
    inputs, targets = task.train.take(torch.arange(16))
    assert len(task.train) == 8 * USUAL.train_mazes
    assert len({canonical(image) for image in inputs[:8]}) == 1
    assert len({canonical(image) for image in inputs}) == 2
    assert len({walls_of(image).numpy().tobytes() for image in inputs[:8]}) == 8
    assert len({tuple(moves) for moves in targets[:8].tolist()}) == 8


def test_a_row_is_the_same_whenever_and_in_whatever_company() -> None:
    numbers = torch.tensor([5, 2, 11])
    first = load_task(TaskConfig(name="maze", maze=USUAL)).train
    together = first.take(numbers)
    assert torch.equal(first.take(numbers).inputs, together.inputs), "kept as it was made"
    for place, number in enumerate(numbers):
        alone = load_task(TaskConfig(name="maze", maze=USUAL)).train.take(number[None])
        assert torch.equal(alone.inputs[0], together.inputs[place])
        assert torch.equal(alone.targets[0], together.targets[place])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(
            {"size": 3}, r"task\.maze\.size must lie in \[4, 100\], got 3", id="too few mazes for three parts"
        ),
        pytest.param({"route": 4}, r"task\.maze\.route must lie in \[6, inf\), got 4", id="no room for a route"),
        pytest.param(
            {"route": 7, "shortest": 7}, r"task\.maze\.route must lie in \[8, inf\), got 7", id="no route is odd"
        ),
        pytest.param({"size": 4, "shortest": 13}, r"task\.maze\.shortest must lie in \[2, 12\], got 13", id="too far"),
        pytest.param({"held_out_rows": 0}, r"task\.maze\.held_out_rows must lie in \[1, inf\), got 0", id="no rows"),
    ],
)
def test_mazes_that_cannot_be_are_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MazeConfig(**options)


def test_mazes_have_no_variants_of_images() -> None:
    with pytest.raises(ValueError, match="the task maze allows none"):
        TaskConfig(name="maze", augment=AugmentConfig(shift=1.0))
