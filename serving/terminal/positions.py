"""Predictions of several positions: the best label of each, and what a list of moves does in a maze."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from protos import ctm_bundle_pb2 as bundle_pb2
from serving.client import ClassScore
from serving.request import Array
from serving.terminal.images import UnfitInput

OFFSETS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
"""Rows and columns that a move goes."""
WAIT = "wait"
ARROWS = {"up": "↑", "down": "↓", "left": "←", "right": "→", WAIT: "·"}

Pixel = tuple[int, int]


def has_positions(manifest: bundle_pb2.Manifest) -> bool:
    """Whether an answer of the model is a label at each of several positions."""
    return len(_prediction_shape(manifest)) == 2


def draws_routes(manifest: bundle_pb2.Manifest) -> bool:
    """Whether the model tells a route through a picture, move by move."""
    picture = len(manifest.inputs) == 1 and len(manifest.inputs[0].shape) == 3 and manifest.inputs[0].shape[0] == 3
    return has_positions(manifest) and picture and set(manifest.labels) == set(ARROWS)


def reads_signs(manifest: bundle_pb2.Manifest) -> bool:
    """Whether the model answers at each sign of a sequence."""
    shape = list(manifest.inputs[0].shape) if len(manifest.inputs) == 1 else []
    return has_positions(manifest) and shape == _prediction_shape(manifest)[:1]


def _prediction_shape(manifest: bundle_pb2.Manifest) -> list[int]:
    predictions = [spec for spec in manifest.outputs if spec.role == bundle_pb2.TensorSpec.PREDICTION]
    return list(predictions[0].shape) if predictions else []


def best(top: Iterable[ClassScore]) -> list[ClassScore]:
    """The first of each position, in order."""
    first: dict[int, ClassScore] = {}
    for one in top:
        first.setdefault(one.position, one)
    return [first[position] for position in sorted(first)]


@dataclass(frozen=True, slots=True)
class Walk:
    """Where moves lead."""

    pixels: tuple[Pixel, ...]
    """Walked through, the start first."""
    blocked: Pixel | None
    """The wall that a move ran into, which ended the walk; it may lie outside."""
    arrived: bool
    """Whether the walk ends on the maze's end, and stays."""

    def outcome(self) -> str:
        """For people: `reaches the end in 18 moves`."""
        moves = len(self.pixels) - 1
        if self.blocked is not None:
            return f"runs into a wall at move {moves + 1}"
        plural = "" if moves == 1 else "s"
        return f"reaches the end in {moves} move{plural}" if self.arrived else f"stops short after {moves} move{plural}"


@dataclass(frozen=True, slots=True, eq=False)
class Maze:
    """A picture of black walls, and its one red and one green pixel."""

    image: Array
    """[3, H, W], brightness in [0, 1]."""
    start: Pixel
    end: Pixel

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[1], self.image.shape[2]

    def is_wall(self, pixel: Pixel) -> bool:
        """Everything outside is wall, too."""
        inside = all(0 <= place < side for place, side in zip(pixel, self.size, strict=True))
        return not inside or bool(self.image[:, pixel[0], pixel[1]].max() <= 0.5)

    def walk(self, moves: Sequence[str]) -> Walk:
        """Follow moves from the start until one waits, or a wall is in the way."""
        here, pixels = self.start, [self.start]
        for move in moves:
            if move == WAIT:
                break
            there = here[0] + OFFSETS[move][0], here[1] + OFFSETS[move][1]
            if self.is_wall(there):
                return Walk(tuple(pixels), there, arrived=False)
            here = there
            pixels.append(here)
        return Walk(tuple(pixels), None, arrived=here == self.end)


def read_maze(name: str, image: Array) -> Maze:
    """Find start and end.

    Args:
        image: [3, H, W], brightness in [0, 1].

    Raises:
        UnfitInput: there is none of one, or more than one.
    """
    red, green, blue = (plane > 0.5 for plane in image)
    starts, stops = np.argwhere(red & ~green & ~blue), np.argwhere(green & ~red & ~blue)
    if (len(starts), len(stops)) != (1, 1):
        met = f"{len(starts)} red (start) and {len(stops)} green (end) pixels"
        raise UnfitInput(f"{name}: got {met}, expected a maze with one of each")
    start, end = ((int(places[0][0]), int(places[0][1])) for places in (starts, stops))
    return Maze(image, start, end)
