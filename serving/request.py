"""What a request asks for, resolved: no field is unset, every limit has been checked.

`wire.py` makes a `Request` out of the caller's message and the bundle's defaults; the engine only reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from serving.chain import Chain

Array = NDArray[Any]


class StopReason(IntEnum):
    """Why a thought ended. The numbers are the protocol's."""

    CANCELLED = 1  # the client left; nothing is sent
    DIVERGED = 2  # prediction or certainty is not finite
    MODEL_DONE = 3  # the program itself says so
    CERTAIN = 4  # certainty reached the threshold
    ENERGY = 5  # energy is low enough, or has settled
    TICK_BUDGET = 6  # max_ticks run
    DEADLINE = 7  # the deadline is near: the best answer so far


class AnswerRule(IntEnum):
    """Which tick's prediction is the answer. The numbers are the protocol's."""

    MOST_CERTAIN = 1
    LAST = 2


class ChainEnd(IntEnum):
    """Why a row's chain has no further link. The numbers are the protocol's."""

    GOES_ON = 0  # it has; of a single thought nothing is said
    MAX_LINKS = 1
    STOP_TEXT = 2
    END_TOKEN = 3
    INTERRUPTED = 4  # by the deadline, a drain, or a thought that diverged


@dataclass(frozen=True, kw_only=True, slots=True)
class StopPolicy:
    """When a thought stops. A rule that is off holds the value that never fires."""

    max_ticks: int
    min_ticks: int = 1
    certainty_threshold: float = inf
    """Inclusive, in [0, 1]; `inf` is off."""
    patience: int = 1
    """Ticks over which the top prediction must not have changed, for `CERTAIN`."""
    energy_threshold: float = -inf
    """Stop at this energy or below; `-inf` is off."""
    energy_delta: float = 0.0
    """Stop when the energy changed by less than this in one tick; 0 is off."""
    model_done: bool = True
    """Whether the program's own wish to stop counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamPolicy:
    """What the caller sees while a thought runs."""

    every: int = 1
    """Every n-th tick is sent; 0 sends answers only."""
    predictions: bool = False
    top_k: int = 0
    details: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Request:
    """Rows to think about, together. Compared by identity: two callers may choose one id."""

    request_id: str
    inputs: Mapping[str, Array]
    """Each [rows, ...], in the program's datatype; never written to."""
    rows: int
    stop: StopPolicy
    stream: StreamPolicy = field(default_factory=StreamPolicy)
    answer_rule: AnswerRule = AnswerRule.MOST_CERTAIN
    abstain_below: float = 0.0
    priority: int = 0
    deadline: float = inf
    """Monotonic seconds; `inf` is none."""
    arrival: float = 0.0
    """Monotonic seconds."""
    chain: "Chain | None" = None
    """What follows each row's thought; None: each row is a single thought."""
