"""What a caller is told: ticks as they happen, an answer for each thought, then a summary, or a failure instead.

Nobody writes to an event once it is made; they are not frozen because that makes making one four times as slow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serving.errors import ServingError
from serving.request import Array, ChainEnd, StopReason


@dataclass(frozen=True, slots=True)
class Leading:
    """The k best classes at each of P positions, [P, k], best first."""

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    """Softmax of the prediction, in [0, 1]."""


@dataclass(slots=True)
class Tick:
    """One tick of one row. Only these may be left out for a slow reader."""

    row: int
    tick: int
    certainty: float
    energy: float | None = None
    prediction: Array | None = None
    leading: Leading | None = None
    details: dict[str, Array] = field(default_factory=dict)
    link: int = 0


@dataclass(slots=True)
class Answer:
    """What came of one thought."""

    row: int
    ticks_used: int
    answer_tick: int
    """The tick that the prediction comes from; 0 when the row never ticked, and then there is no prediction."""
    certainty: float
    stop_reason: StopReason
    abstained: bool
    prediction: Array | None = None
    leading: Leading | None = None
    energy: float | None = None
    link: int = 0
    text: str = ""
    """Of text chains: what became readable with this link."""
    outputs: dict[str, Array] = field(default_factory=dict)
    """What the chain gives besides, one row's values without the row dimension."""
    finished: Mapping[str, Array] = field(default_factory=dict)
    """Of programs with a finish: what it gave, for the chain alone; empty when the thought came to nothing."""
    chain_end: ChainEnd = ChainEnd.GOES_ON


@dataclass(slots=True)
class Summary:
    """The last event of a request that did not fail."""

    abstain_mask: list[bool]
    """Whether each row's last answer abstained."""
    abstentions: list[int]
    """Answers of each row that abstained, over all its links."""
    ticks_used: int
    """By all rows and links."""
    queue_seconds: float
    """From arrival to the admission of the last row; of chains, of their first link."""
    think_seconds: float
    """From the first admission to the last answer."""
    seed: int | None = None
    """Of chains: what their randomness was drawn from, in [0, 2^64)."""
    texts: list[str] = field(default_factory=list)
    """Of text chains, one a row: all that was generated."""
    outputs: dict[str, Array] = field(default_factory=dict)
    """What the chain came to, [rows, ...] each."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The last event of a request that failed."""

    error: ServingError


Event = Tick | Answer | Summary | Failure
