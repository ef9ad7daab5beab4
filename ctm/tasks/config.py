"""Which task a run learns, and the options of each."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import urlsplit

TaskName = Literal["digits", "mnist", "cifar10", "parity", "maze", "text"]
MNIST_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
CIFAR10_ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Random variants of training images, drawn afresh at every update; all zero leaves images as they are."""

    shift: float = 0.0
    """Largest shift in each direction, in pixels."""
    rotation: float = 0.0
    """Largest rotation either way, in degrees."""
    scale: float = 0.0
    """Largest change of size, as a share: 0.1 draws sizes between 0.9 and 1.1."""
    shear: float = 0.0
    """Largest slant either way, in degrees."""
    mirror: bool = False
    """Swap left and right in half of the images."""
    colour: float = 0.0
    """Largest change of brightness, of contrast and of saturation, as a share of each."""

    def __post_init__(self) -> None:
        for name, limit in (("shift", math.inf), ("rotation", 180.0), ("scale", 0.9), ("shear", 60.0), ("colour", 1.0)):
            check_range(f"task.augment.{name}", getattr(self, name), 0.0, limit)

    @property
    def active(self) -> bool:
        return self.moves or self.mirror or self.colour > 0

    @property
    def moves(self) -> bool:
        """Whether pixels move by parts of their size, which takes a resampling."""
        return any((self.shift, self.rotation, self.scale, self.shear))


@dataclass(frozen=True, kw_only=True, slots=True)
class MnistConfig:
    """Options of the task `mnist`."""

    mirror: str = MNIST_MIRROR
    """Where the four files are fetched from when no data folder is given."""
    held_out: int = 5000
    """How many rows at the end of the training set are held out of training."""

    def __post_init__(self) -> None:
        _check_address("task.mnist.mirror", self.mirror)
        check_range("task.mnist.held_out", self.held_out, 1, math.inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cifar10Config:
    """Options of the task `cifar10`."""

    address: str = CIFAR10_ADDRESS
    """Where the archive is fetched from when no data folder is given."""
    held_out: int = 5000
    """How many rows at the end of the training set are held out of training."""

    def __post_init__(self) -> None:
        _check_address("task.cifar10.address", self.address)
        check_range("task.cifar10.held_out", self.held_out, 1, math.inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityConfig:
    """Options of the task `parity`."""

    length: int = 16
    """Values in one sequence."""
    train_rows: int = 1_000_000
    """Sequences to learn from; they are generated when asked for, so a large number costs nothing."""
    held_out_rows: int = 2000
    test_rows: int = 5000

    def __post_init__(self) -> None:
        # Of shorter sequences there are so few that a part might have none.
        check_range("task.parity.length", self.length, 6, math.inf)
        _check_counts("task.parity", self, "train_rows", "held_out_rows", "test_rows")


@dataclass(frozen=True, kw_only=True, slots=True)
class MazeConfig:
    """Options of the task `maze`."""

    size: int = 5
    """Cells at a side; the image has 2 x size + 1 pixels at a side."""
    route: int = 32
    """Positions of an answer: a move each, of one pixel. Mazes with a longer route are not drawn."""
    shortest: int = 6
    """Moves of the shortest route that is drawn."""
    train_mazes: int = 100_000
    """Mazes to learn from, each turned and mirrored in 8 ways; drawn when first asked for."""
    held_out_rows: int = 2000
    test_rows: int = 5000

    def __post_init__(self) -> None:
        # Smaller ones are too few for parts that share none.
        check_range("task.maze.size", self.size, 4, 100)
        # From corner to corner; not every maze holds a longer route.
        check_range("task.maze.shortest", self.shortest, 2, 4 * (self.size - 1))
        # From cell to cell are two moves, so a route has an even number of them.
        check_range("task.maze.route", self.route, self.shortest + self.shortest % 2, math.inf)
        _check_counts("task.maze", self, "train_mazes", "held_out_rows", "test_rows")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Options of the task `text`."""

    length: int = 128
    """Tokens in one window."""
    stride: int = 64
    """Tokens from the beginning of one training window to the next. Held-out and test windows never overlap."""
    held_out_rows: int | None = None
    """How many held-out windows are watched while training, spread evenly over the split; all where unset."""

    def __post_init__(self) -> None:
        check_range("task.text.length", self.length, 1, math.inf)
        check_range("task.text.stride", self.stride, 1, self.length)
        if self.held_out_rows is not None:
            check_range("task.text.held_out_rows", self.held_out_rows, 1, math.inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """What is learned."""

    name: TaskName
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mnist: MnistConfig = field(default_factory=MnistConfig)
    cifar10: Cifar10Config = field(default_factory=Cifar10Config)
    parity: ParityConfig = field(default_factory=ParityConfig)
    maze: MazeConfig = field(default_factory=MazeConfig)
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        if self.name not in get_args(TaskName):
            raise ValueError(f"task.name must be one of {', '.join(get_args(TaskName))}, got {self.name!r}")
        if self.name in ("parity", "maze", "text") and self.augment.active:
            raise ValueError(f"task.augment makes variants of single images; the task {self.name} allows none")


def check_range(
    name: str, value: float, low: float, high: float, *, open_below: bool = False, open_above: bool = False
) -> None:
    """Raise ValueError, naming the key, what was met and what is allowed, unless low <= value <= high.

    Args:
        open_below, open_above: whether that end itself is not allowed; infinity never is.
    """
    open_above = open_above or high == math.inf
    fits = (low < value if open_below else low <= value) and (value < high if open_above else value <= high)
    if not fits:
        interval = f"{'(' if open_below else '['}{low}, {high}{')' if open_above else ']'}"
        raise ValueError(f"{name} must lie in {interval}, got {value}")


def _check_counts(prefix: str, config: object, *names: str) -> None:
    """Raise ValueError, naming the key, unless there is at least one of each."""
    for name in names:
        check_range(f"{prefix}.{name}", getattr(config, name), 1, math.inf)


def _check_address(name: str, address: str) -> None:
    if urlsplit(address).scheme not in ("http", "https"):
        raise ValueError(f"{name} must be an http or https address, got {address!r}")
