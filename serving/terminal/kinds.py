"""What `ctm-think` knows of each kind of model: how arguments become its input, and what its thoughts look like.

The manifest decides, by the shapes of input and prediction and by its labels: routes through a picture, labels at the
signs of a sequence, or else one class.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from math import prod

import numpy as np
from rich.console import RenderableType

from protos import ctm_bundle_pb2 as bundle_pb2
from serving.client import ClassScore
from serving.mismatch import Mismatch, quote
from serving.request import Array
from serving.tensors import DATATYPES, shape_text
from serving.terminal.board import Board, leaders
from serving.terminal.images import Loaded, UnfitInput, from_array, from_picture, load, the_input, unit
from serving.terminal.positions import WAIT, Maze, best, draws_routes, has_positions, read_maze, reads_signs
from serving.terminal.route_view import RouteView
from serving.terminal.signs_view import SignsView
from serving.terminal.view import View

_SIGNS = re.compile(r"[+\-−]{2,}")


class Kind(ABC):
    """One model, as the screen sees it. What the model does not take raises `UnfitInput`."""

    fits_pictures = True
    """Whether pictures of another size are made to fit."""

    def __init__(self, manifest: bundle_pb2.Manifest) -> None:
        self.manifest = manifest
        self.spec = the_input(manifest)

    def load(self, source: str, invert: bool | None) -> list[Loaded]:
        """The rows that an argument stands for."""
        return self._checked(load(source, self.spec, invert=invert, fit=self.fits_pictures))

    def decode(self, name: str, picture: bytes, invert: bool | None) -> Loaded:
        """The row that an encoded picture makes."""
        row = from_picture(name, picture, self.spec, invert=invert, fit=self.fits_pictures)
        return self._checked([row])[0]

    def take(self, name: str, values: Array) -> Loaded:
        """The row that an array of the input's shape is, or one as long that was made flat for a table."""
        shape = tuple(self.spec.shape)
        rows = from_array(name, values.reshape(shape) if values.shape == (prod(shape),) else values, self.spec)
        if len(rows) != 1:
            raise UnfitInput(str(Mismatch(f"{name}, shape", shape_text(values.shape), shape_text(shape))))
        return self._checked(rows)[0]

    def check(self, row: Loaded) -> None:  # noqa: B027  # most models take any row of their shape
        """Refuse a row that means nothing to the model."""

    def _checked(self, rows: list[Loaded]) -> list[Loaded]:
        for row in rows:
            self.check(row)
        return rows

    @abstractmethod
    def draw(self, board: Board, *, running: bool) -> RenderableType:
        """The screen."""

    def words(self, top: Sequence[ClassScore]) -> str:
        """A prediction in a line of plain text."""
        return " ".join(one.label for one in best(top))


class Classes(Kind):
    """One class a row, of pictures or whatever an array holds."""

    def draw(self, board: Board, *, running: bool) -> RenderableType:
        return View(board, self.spec, running)

    def words(self, top: Sequence[ClassScore]) -> str:
        return leaders(top)


class Routes(Kind):
    """A move at each position, through a maze with a red start and a green end."""

    fits_pictures = False

    def check(self, row: Loaded) -> None:
        self._maze(row)

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
        if is_typed(source):
            return [self._typed(source)]
        if not source.endswith(".npy") and source != "-":
            raise UnfitInput(
                f"got {quote(source)}, expected {self._length} signs, as in +-++-, or a .npy file of 1 and -1"
            )
        return super().load(source, invert)

    def check(self, row: Loaded) -> None:
        others = row.values[(row.values != 1) & (row.values != -1)]
        if others.size:
            raise UnfitInput(str(Mismatch(f"{row.name}, values", others[0], "1 and -1 alone")))

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


def is_typed(source: str) -> bool:
    """Whether an argument is signs, such as +-++-, and no file."""
    return _SIGNS.fullmatch(source) is not None


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


def single_thoughts(manifest: bundle_pb2.Manifest) -> Kind:
    """The same, of a model whose answer to a row is one thought.

    Raises:
        UnfitInput: it makes chains of them, or takes several inputs.
    """
    if manifest.chain:
        made = "is a model of text" if manifest.chain == "text" else "is a model that draws"
        raise UnfitInput(f"{manifest.name} {made}: only models that answer a row with one thought score data sets")
    return kind_of(manifest)


def shows_positions(kind: Kind) -> bool:
    """Whether only the best label of each position is of interest."""
    return has_positions(kind.manifest)
