"""What `ctm-think` knows of each kind of model: how arguments become its input, and what its thoughts look like.

The manifest decides, by the shapes of input and prediction and by its labels: routes through a picture, labels at the
signs of a sequence, or else one class.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from rich.console import RenderableType

from protos import ctm_bundle_pb2 as bundle_pb2
from serving.client import ClassScore
from serving.mismatch import Mismatch, quote
from serving.request import Array
from serving.tensors import DATATYPES
from serving.terminal.board import Board, leaders
from serving.terminal.images import Loaded, UnfitInput, load, the_input, unit
from serving.terminal.positions import WAIT, Maze, best, draws_routes, has_positions, read_maze, reads_signs
from serving.terminal.route_view import RouteView
from serving.terminal.signs_view import SignsView
from serving.terminal.view import View

_SIGNS = re.compile(r"[+\-−]{2,}")


class Kind(ABC):
    """One model, as the screen sees it."""

    def __init__(self, manifest: bundle_pb2.Manifest) -> None:
        self.manifest = manifest
        self.spec = the_input(manifest)

    @abstractmethod
    def load(self, source: str, invert: bool | None) -> list[Loaded]:
        """The rows that an argument stands for.

        Raises:
            UnfitInput: it is not what the model takes.
        """

    @abstractmethod
    def draw(self, board: Board, *, running: bool) -> RenderableType:
        """The screen."""

    def words(self, top: Sequence[ClassScore]) -> str:
        """A prediction in a line of plain text."""
        return " ".join(one.label for one in best(top))


class Classes(Kind):
    """One class a row, of pictures or whatever an array holds."""

    def load(self, source: str, invert: bool | None) -> list[Loaded]:
        return load(source, self.spec, invert=invert)

    def draw(self, board: Board, *, running: bool) -> RenderableType:
        return View(board, self.spec, running)

    def words(self, top: Sequence[ClassScore]) -> str:
        return leaders(top)


class Routes(Kind):
    """A move at each position, through a maze with a red start and a green end."""

    def load(self, source: str, invert: bool | None) -> list[Loaded]:
        rows = load(source, self.spec, invert=invert, fit=False)
        for row in rows:
            self._maze(row)  # refuses what is none
        return rows

    def draw(self, board: Board, *, running: bool) -> RenderableType:
        return RouteView(board, [self._maze(thought.image) for thought in board.thoughts], running)

    def words(self, top: Sequence[ClassScore]) -> str:
        moves = [(label, len(list(run))) for label, run in groupby(one.label for one in best(top))]
        if moves and moves[-1][0] == WAIT:
            moves.pop()
        return ", ".join(f"{times} {label}" for label, times in moves) or WAIT

    def _maze(self, row: Loaded) -> Maze:
        return read_maze(row.name, unit(row.values, self.spec))


class Signs(Kind):
    """A label at each sign of a sequence that is typed, such as +-++-, or stands in an array of 1 and -1."""

    def load(self, source: str, invert: bool | None) -> list[Loaded]:
        if invert is not None:
            raise UnfitInput(f"{self.manifest.name} reads signs: there is no light and dark to invert")
        if _SIGNS.fullmatch(source):
            return [self._typed(source)]
        if not source.endswith(".npy") and source != "-":
            raise UnfitInput(
                f"got {quote(source)}, expected {self._length} signs, as in +-++-, or a .npy file of 1 and -1"
            )
        rows = load(source, self.spec)
        for row in rows:
            _check_signs(row.name, row.values)
        return rows

    def draw(self, board: Board, *, running: bool) -> RenderableType:
        return SignsView(board, tuple(self.manifest.labels), running)

    @property
    def _length(self) -> int:
        return int(self.spec.shape[0])

    def _typed(self, signs: str) -> Loaded:
        if len(signs) != self._length:
            raise UnfitInput(str(Mismatch(signs, f"{len(signs)} signs", f"{self._length}")))
        values = [1 if sign == "+" else -1 for sign in signs]
        return Loaded("signs", np.array(values, DATATYPES[self.spec.datatype]))


def kind_of(manifest: bundle_pb2.Manifest) -> Kind:
    """How to show this model.

    Raises:
        UnfitInput: it takes several inputs.
    """
    if draws_routes(manifest):
        return Routes(manifest)
    if reads_signs(manifest):
        return Signs(manifest)
    return Classes(manifest)


def shows_positions(kind: Kind) -> bool:
    """Whether only the best label of each position is of interest."""
    return has_positions(kind.manifest)


def _check_signs(name: str, values: Array) -> None:
    others = values[(values != 1) & (values != -1)]
    if others.size:
        raise UnfitInput(str(Mismatch(f"{name}, values", others[0], "1 and -1 alone")))
