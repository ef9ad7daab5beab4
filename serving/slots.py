"""Which slot runs which thought, and when each stops: one row of numbers a slot, judged all at once.

    judge:  certainty, energy, ... of n slots  ->  a stop reason for each (0: goes on), and who keeps this prediction

The rows are plain numbers, so that a tick costs a handful of vector operations however many thoughts run.
"""

# Shapes: n running thoughts, in the dense first n of S slots; P positions of a structured prediction.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.request import AnswerRule, Request, StopReason

_ROW = np.dtype(
    [
        # The policy, fixed at admission.
        ("min_ticks", np.int32),
        ("max_ticks", np.int32),
        ("threshold", np.float32),
        ("patience", np.int32),
        ("energy_threshold", np.float32),
        ("energy_delta", np.float32),
        ("model_done", np.bool_),
        ("keep_last", np.bool_),
        ("deadline", np.float64),
        ("every", np.int32),
        ("details", np.bool_),
        # The thought so far.
        ("ticks", np.int32),
        ("certainty", np.float32),
        ("energy", np.float32),
        ("answer_tick", np.int32),
        ("answer_certainty", np.float32),
        ("answer_energy", np.float32),
        ("unchanged", np.int32),
    ]
)


_NEVER = np.iinfo(np.int32).max

# As plain numbers: an enum's attribute is looked up in Python, and these are read at every tick.
_DIVERGED, _MODEL_DONE, _CERTAIN = int(StopReason.DIVERGED), int(StopReason.MODEL_DONE), int(StopReason.CERTAIN)
_ENERGY, _TICK_BUDGET = int(StopReason.ENERGY), np.int8(StopReason.TICK_BUDGET)


_NOBODY = np.empty(0, np.intp)


class Standing(NamedTuple):
    """How far a thought has come."""

    ticks: int
    answer_tick: int
    answer_certainty: float
    answer_energy: float


@dataclass(slots=True)
class _Wishes:
    """How many running thoughts want more than a threshold and a budget: what nobody wants costs nothing at a tick."""

    min_ticks: int = 0
    patience: int = 0
    keep_last: int = 0
    deadline: int = 0
    ticks: int = 0
    details: int = 0

    def count(self, request: Request, change: int) -> None:
        stop, stream = request.stop, request.stream
        self.min_ticks += change * (stop.min_ticks > 1)
        self.patience += change * (stop.patience > 1)
        self.keep_last += change * (request.answer_rule is AnswerRule.LAST)
        self.deadline += change * (request.deadline < inf)
        self.ticks += change * (stream.every > 0)
        self.details += change * bool(stream.details)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one tick decided for the first n slots."""

    reasons: NDArray[np.int8]
    """[n]; 0 where the thought goes on, else its `StopReason`."""
    keep: NDArray[np.bool_]
    """[n]; where the prediction of this tick is the answer so far."""
    diverged: NDArray[np.intp]
    """Slots that stop as `DIVERGED`: their answer is the tick before, if there was one."""
    watched: NDArray[np.intp]
    """Slots whose callers see this tick."""


class SlotTable:
    """Policies and progress of the running thoughts."""

    def __init__(self, num_slots: int, positions: int) -> None:
        self.rows = np.zeros(num_slots, _ROW)
        self._top = np.zeros((num_slots, positions), np.int64)
        # Views, made once: naming a field of a structured array costs more than the arithmetic on it.
        self._column = {name: self.rows[name] for name in _ROW.names or ()}
        self._first: dict[int, dict[str, NDArray[Any]]] = {}
        self._standing = self.rows[list(Standing._fields)]
        self._wishes = _Wishes()

    def admit(self, slot: int, request: Request) -> None:
        stop = request.stop
        self._wishes.count(request, +1)
        self.rows[slot] = (
            stop.min_ticks,
            stop.max_ticks,
            stop.certainty_threshold,
            stop.patience,
            stop.energy_threshold,
            stop.energy_delta,
            stop.model_done,
            request.answer_rule is AnswerRule.LAST,
            request.deadline,
            request.stream.every or _NEVER,
            bool(request.stream.details),
            0,
            0.0,
            nan,
            0,
            -1.0,
            nan,
            0,
        )

    def leave(self, slot: int, request: Request) -> None:
        """The slot's thought has ended."""
        self._wishes.count(request, -1)
        if request.deadline < inf:
            self._column["deadline"][slot] = inf  # nobody waits for it any more

    def move(self, source: int, target: int) -> None:
        self.rows[target] = self.rows[source]
        self._top[target] = self._top[source]

    def expired(self, n: int, horizon: float) -> list[int]:
        """Slots whose deadline is at `horizon` or before."""
        return np.flatnonzero(self._column["deadline"][:n] <= horizon).tolist() if self._wishes.deadline else []

    def standings(self, slots: Sequence[int]) -> list[Standing]:
        return [Standing(*standing) for standing in self._standing[slots].tolist()]

    @property
    def wants_details(self) -> bool:
        """Whether any caller sees the program's details."""
        return self._wishes.details > 0

    @property
    def wants_top(self) -> bool:
        """Whether any thought needs the top predictions of this tick."""
        return self._wishes.patience > 0

    def judge(
        self,
        certainty_n: NDArray[np.float32],
        finite_n: NDArray[np.bool_] | None = None,
        energy_n: NDArray[np.float32] | None = None,
        done_n: NDArray[np.bool_] | None = None,
        top_nP: NDArray[np.int64] | None = None,
    ) -> Verdict:
        """Fold one tick of the first n slots into the table, and say who stops and why.

        Args:
            certainty_n: as the program gave it; clamped to [0, 1] here, before any comparison.
            finite_n: false where prediction or certainty is not finite; None when all are.
            energy_n: of programs with an energy head.
            done_n: where the program wishes to stop.
            top_nP: the best class at each position; needed when `wants_top`.
        """
        column = self._columns(len(certainty_n))
        certainty = np.minimum(np.maximum(certainty_n, 0.0), 1.0)
        ticks = column["ticks"]
        ticks += 1
        if top_nP is not None:
            self._count_unchanged(top_nP)
        reasons = self._reasons(column, certainty, energy_n, done_n, patient=top_nP is not None)

        # Strictly greater: of equally certain ticks the earliest is the answer.
        keep = certainty > column["answer_certainty"]
        if self._wishes.keep_last:
            keep |= column["keep_last"]
        if energy_n is not None:
            keep |= reasons == _ENERGY
        if top_nP is not None:
            keep |= (reasons == _CERTAIN) & (column["patience"] > 1)
        diverged = _NOBODY
        if finite_n is not None:
            keep &= finite_n
            diverged = np.flatnonzero(~finite_n)
            reasons[diverged] = _DIVERGED
            self._fall_back(diverged)
        np.copyto(column["answer_tick"], ticks, where=keep)
        np.copyto(column["answer_certainty"], certainty, where=keep)
        if energy_n is not None:
            np.copyto(column["answer_energy"], column["energy"], where=keep)
        column["certainty"][:] = certainty
        return Verdict(reasons, keep, diverged, self._watched(ticks, column["every"], finite_n))

    def _reasons(
        self,
        column: Mapping[str, NDArray[Any]],
        certainty: NDArray[np.float32],
        energy_n: NDArray[np.float32] | None,
        done_n: NDArray[np.bool_] | None,
        *,
        patient: bool,
    ) -> NDArray[np.int8]:
        """Why each of n thoughts stops, its numbers being finite; weaker reasons are written first, 0 is none."""
        reasons = np.multiply(column["ticks"] >= column["max_ticks"], _TICK_BUDGET)
        ready = column["ticks"] >= column["min_ticks"] if self._wishes.min_ticks else None
        if energy_n is not None:
            with np.errstate(invalid="ignore"):  # NaN at the first tick, or between infinities, compares false
                change = np.abs(energy_n - column["energy"])
            settled = (energy_n <= column["energy_threshold"]) | (change < column["energy_delta"])
            reasons[settled if ready is None else ready & settled] = _ENERGY
            column["energy"][:] = energy_n
        certain = certainty >= column["threshold"]
        if ready is not None:
            certain &= ready
        if patient:
            certain &= column["unchanged"] >= column["patience"]
        reasons[certain] = _CERTAIN
        if done_n is not None:
            reasons[done_n & column["model_done"]] = _MODEL_DONE
        return reasons

    def _watched(
        self, ticks: NDArray[np.int32], every: NDArray[np.int32], finite_n: NDArray[np.bool_] | None
    ) -> NDArray[np.intp]:
        if not self._wishes.ticks:
            return _NOBODY
        due: NDArray[np.bool_] = ticks % every == 0
        return np.flatnonzero(due if finite_n is None else due & finite_n)

    def _columns(self, n: int) -> dict[str, NDArray[Any]]:
        """The first n of each column: views, so that they may be kept."""
        if (columns := self._first.get(n)) is None:
            columns = self._first[n] = {name: values[:n] for name, values in self._column.items()}
        return columns

    def _count_unchanged(self, top_nP: NDArray[np.int64]) -> None:
        n = len(top_nP)
        same = (self._top[:n] == top_nP).all(axis=1) & (self._column["ticks"][:n] > 1)
        unchanged = self._column["unchanged"][:n]
        unchanged[:] = np.where(same, unchanged + 1, 1)
        self._top[:n] = top_nP

    def _fall_back(self, slots: NDArray[np.intp]) -> None:
        """Make the tick before the answer of `slots`: it was finite, as a thought stops at its first that is not."""
        answer_tick = self._column["ticks"][slots] - 1
        self._column["answer_tick"][slots] = answer_tick
        self._column["answer_certainty"][slots] = np.where(answer_tick > 0, self._column["certainty"][slots], 0.0)
        self._column["answer_energy"][slots] = nan
