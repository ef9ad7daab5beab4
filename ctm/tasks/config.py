"""Which task a run learns, and the options of each."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import urlsplit

TaskName = Literal["digits", "mnist", "parity"]
MNIST_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"


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

    def __post_init__(self) -> None:
        for name, limit in (("shift", math.inf), ("rotation", 180.0), ("scale", 0.9), ("shear", 60.0)):
            check_range(f"task.augment.{name}", getattr(self, name), 0.0, limit)

    @property
    def active(self) -> bool:
        return any((self.shift, self.rotation, self.scale, self.shear))


@dataclass(frozen=True, kw_only=True, slots=True)
class MnistConfig:
    """Options of the task `mnist`."""

    mirror: str = MNIST_MIRROR
    """Where the four files are fetched from when no data folder is given."""
    held_out: int = 5000
    """How many rows at the end of the training set are held out of training."""

    def __post_init__(self) -> None:
        if urlsplit(self.mirror).scheme not in ("http", "https"):
            raise ValueError(f"task.mnist.mirror must be an http or https address, got {self.mirror!r}")
        check_range("task.mnist.held_out", self.held_out, 1, math.inf)


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
        for name in ("length", "train_rows", "held_out_rows", "test_rows"):
            check_range(f"task.parity.{name}", getattr(self, name), 1, math.inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """What is learned."""

    name: TaskName
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mnist: MnistConfig = field(default_factory=MnistConfig)
    parity: ParityConfig = field(default_factory=ParityConfig)

    def __post_init__(self) -> None:
        if self.name not in get_args(TaskName):
            raise ValueError(f"task.name must be one of {', '.join(get_args(TaskName))}, got {self.name!r}")
        if self.name == "parity" and self.augment.active:
            raise ValueError("task.augment makes variants of images; the task parity allows none")


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
