"""Mazes: images whose walls are black, ways white, start red and end green; the route is to be told, move by move.

A task from the paper (arXiv 2505.05522, section on mazes). A maze of n x n cells is a random depth-first spanning tree
of their grid, so that one route leads from start to end. Drawn, it has 2n + 1 pixels at a side: cells stand at odd
coordinates, walls and openings between them. A move is one pixel, and after the end the answer is to wait.

Mirrored or turned, a maze is the same maze. Its walls alone say which part a maze is in, whichever way it is turned
and wherever its ends are: nothing of a held-out or a test maze is ever learned from.
"""
# Shapes: B rows, P pixels of an image, R positions of a route.

import random
import zlib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import networkx as nx
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctm.tasks.config import MazeConfig, TaskConfig
from ctm.tasks.task import Batch, Task

MOVES = ("up", "down", "left", "right", "wait")
OFFSETS = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Rows and columns that a move goes, in the order of `MOVES`."""
WAIT = MOVES.index("wait")

WALL, WAY, START, END = range(4)
COLOURS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
"""Red, green and blue of each of these."""

VARIANTS = 8
"""Ways to turn and mirror a square."""
SHARES = {"train": range(2, 8), "held_out": range(0, 1), "test": range(1, 2)}
"""Which of eight equal shares of all walls each part has."""

Cell = tuple[int, int]
Bytes = NDArray[np.uint8]


class MazeRows:
    """Mazes made from their own number when they are first asked for, then kept: a byte for each pixel and move."""

    def __init__(self, config: MazeConfig, part: str, mazes: int, *, variants: int = 1) -> None:
        """Draw nothing yet.

        Args:
            part: one of `SHARES`.
            variants: rows made of each maze, by turning and mirroring it; 8 at most.
        """
        self._config, self._part, self._variants = config, part, variants
        side = 2 * config.size + 1
        self._images = torch.zeros(mazes, side * side, dtype=torch.uint8)
        self._routes = torch.zeros(mazes, config.route, dtype=torch.uint8)
        self._made = np.zeros(mazes, dtype=bool)
        self._colours = torch.tensor(COLOURS)
        self._places, self._moves = torch.from_numpy(_turned_places(side)), torch.from_numpy(_turned_moves())

    def __len__(self) -> int:
        return len(self._made) * self._variants

    def take(self, indices: Tensor) -> Batch:
        mazes, turns = indices // self._variants, indices % self._variants
        for maze in set(mazes.tolist()):
            if not self._made[maze]:
                self._make(maze)
        pixels_BP = self._images[mazes].gather(1, self._places[turns])
        moves_BR = self._moves[turns].gather(1, self._routes[mazes].long())
        side = 2 * self._config.size + 1
        images = self._colours[pixels_BP.long()].view(len(indices), side, side, 3).permute(0, 3, 1, 2)
        return Batch(images.contiguous(), moves_BR)

    def _make(self, maze: int) -> None:
        image, route = draw_maze(self._config, self._part, maze)
        self._images[maze] = torch.from_numpy(image.ravel())
        self._routes[maze] = torch.from_numpy(route)
        self._made[maze] = True


def maze_task(config: TaskConfig) -> Task:
    options = config.maze
    side = 2 * options.size + 1
    return Task(
        name="maze",
        loss="maze",
        input_name="maze",
        input_shape=(3, side, side),
        prediction_shape=(options.route, len(MOVES)),
        labels=MOVES,
        padding=WAIT,
        train=MazeRows(options, "train", options.train_mazes, variants=VARIANTS),
        held_out=MazeRows(options, "held_out", options.held_out_rows),
        test=MazeRows(options, "test", options.test_rows),
    )


def draw_maze(config: MazeConfig, part: str, number: int) -> tuple[Bytes, Bytes]:
    """The maze of this number in this part: what stands at each pixel, [side, side], and the moves, [R].

    A route that is shorter than R is filled up by waiting; ends of a longer one are not drawn.
    """
    # Parts draw from streams of their own, so that none goes through the tries of another.
    chance = random.Random(number * len(SHARES) + list(SHARES).index(part))
    while True:
        tree = _tree(config.size, chance)
        image = _walls(tree, config.size)
        if share_of(image) not in SHARES[part]:
            continue
        route = _route(tree, config, chance)
        if route:
            break
    pixels = [(2 * row + 1, 2 * column + 1) for row, column in route]
    moves = np.full(config.route, WAIT, dtype=np.uint8)
    for number, (here, there) in enumerate(pairwise(route)):
        # From cell to cell are two pixels.
        moves[2 * number : 2 * number + 2] = OFFSETS.index((there[0] - here[0], there[1] - here[1]))
    image[pixels[0]], image[pixels[-1]] = START, END
    return image, moves


def share_of(image: Bytes) -> int:
    """Which of the eight shares these walls are in: the same for all ways to turn and mirror them."""
    walls = image == WALL
    turned = (np.rot90(side, turns) for side in (walls, walls.T) for turns in range(4))
    return zlib.crc32(min(np.packbits(way).tobytes() for way in turned)) % VARIANTS


def _tree(size: int, chance: random.Random) -> "nx.Graph[Cell]":
    """A spanning tree of a size x size grid, drawn by walking on at random, and back where nothing new is left."""

    def shuffled(neighbours: Iterator[Cell]) -> list[Cell]:
        cells = list(neighbours)
        chance.shuffle(cells)
        return cells

    begin = (chance.randrange(size), chance.randrange(size))
    tree: nx.Graph[Cell] = nx.Graph()
    tree.add_edges_from(nx.dfs_edges(_grid(size), begin, sort_neighbors=shuffled))
    return tree


@cache
def _grid(size: int) -> "nx.Graph[Cell]":
    return nx.grid_2d_graph(size, size)


def _walls(tree: "nx.Graph[Cell]", size: int) -> Bytes:
    image = np.full((2 * size + 1, 2 * size + 1), WALL, dtype=np.uint8)
    image[1::2, 1::2] = WAY
    for (row, column), (other_row, other_column) in tree.edges:
        image[row + other_row + 1, column + other_column + 1] = WAY
    return image


def _route(tree: "nx.Graph[Cell]", config: MazeConfig, chance: random.Random) -> list[Cell]:
    """The cells from a random start to a random end that is neither too near nor too far; empty where none is."""
    begin = (chance.randrange(config.size), chance.randrange(config.size))
    routes = nx.single_source_shortest_path(tree, begin, cutoff=config.route // 2)
    ends = sorted(end for end, cells in routes.items() if 2 * (len(cells) - 1) >= config.shortest)
    return routes[chance.choice(ends)] if ends else []


def _turned_places(side: int) -> NDArray[np.int64]:
    """Where each pixel of a turned image comes from, [8, P]; the first way leaves it as it is."""
    places = np.arange(side * side).reshape(side, side)
    ways = [np.rot90(start, turns).ravel() for start in (places, places.T) for turns in range(4)]
    return np.stack(ways)


def _turned_moves() -> NDArray[np.int64]:
    """What becomes of each move, [8, 5]."""
    table = np.full((VARIANTS, len(MOVES)), WAIT)
    # On an image of 3 x 3 pixels, each move goes from the middle to a neighbour: where is that neighbour afterwards?
    came_from = _turned_places(3)
    middle = 4
    neighbours = [middle + 3 * row + column for row, column in OFFSETS]
    for way, places in enumerate(came_from):
        for move, neighbour in enumerate(neighbours):
            table[way, move] = neighbours.index(int(np.flatnonzero(places == neighbour)[0]))
    return table
