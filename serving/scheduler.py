"""Which thought ticks next, in which slot: plain data, no clock, no threads, no tensors.

    WAITING --admit--> RUNNING --stop--> (gone)
       \\______________________cancel, expire___/

`submit` and `cancel` come from callers, `plan` says what to run, `record` says what the tick decided. Running thoughts
always fill the first slots: a gap is given to the next thought, else the last running one moves into it. In a chain
`follow` lets a row's next link wait, or parks it until `resume`: a parked link is in nobody's way.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import isnan

import numpy as np
from numpy.typing import NDArray

from serving.errors import QueueFull
from serving.request import Array, Request, StopReason
from serving.slots import SlotTable, Verdict
from serving.waiting import Thought, Waiting

_REASONS = {int(reason): reason for reason in StopReason}
"""By number; calling the enum takes five times as long."""


@dataclass(slots=True, eq=False)
class Ended:
    """How a thought ended. Its answer stands in `slot` of the backend until the next plan."""

    thought: Thought
    reason: StopReason
    ticks_used: int = 0
    answer_tick: int = 0
    certainty: float = 0.0
    energy: float | None = None
    slot: int | None = None

    @property
    def abstained(self) -> bool:
        unsound = self.reason is StopReason.DIVERGED or self.answer_tick == 0
        return unsound or self.certainty < self.thought.request.abstain_below


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do before and at the next tick, in this order."""

    expired: list[Ended]
    """Answer these first: their slots are given away below."""
    moves: list[tuple[int, int]]
    """(source, target) slots; carried out before the admissions."""
    admitted: list[Thought]
    """Encode these, each into its `slot`."""
    num_running: int
    """Tick slots 0 .. num_running - 1."""


class Scheduler:
    """Gives thoughts slots, and takes the slots back.

    Args:
        num_slots: thoughts that tick together.
        max_waiting: thoughts that may wait; a request that does not fit whole is refused.
        admissions_per_plan: thoughts encoded between two ticks, so that a heavy encoder does not stall the others.
        positions: of a structured prediction; 1 for plain classes.
    """

    def __init__(self, *, num_slots: int, max_waiting: int, admissions_per_plan: int, positions: int = 1) -> None:
        self.num_slots = num_slots
        self.max_waiting = max_waiting
        self.admissions_per_plan = admissions_per_plan
        self.table = SlotTable(num_slots, positions)
        self._running: list[Thought | None] = [None] * num_slots
        self._span = 0  # slots below this may run; gaps among them are closed by the next plan
        self._gaps: list[int] = []  # a heap
        self._waiting = Waiting()
        self._thoughts: dict[Request, dict[int, Thought]] = {}  # by row; those that have not ended
        self._begun: set[Request] = set()  # requests of which a thought was admitted
        self._arrivals = count()

    @property
    def num_running(self) -> int:
        return self._span - len(self._gaps)

    @property
    def num_waiting(self) -> int:
        return self._waiting.size

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits for a slot; links may be parked."""
        return not self.num_running and not self.num_waiting

    @property
    def next_parked_deadline(self) -> float:
        """When an idle scheduler has something to expire; `inf` when never."""
        return self._waiting.next_parked_deadline()

    def running(self) -> list[Thought]:
        """Running thoughts by slot; right after `plan`, the i-th holds slot i."""
        return [thought for thought in self._running[: self._span] if thought is not None]

    def submit(self, request: Request, *, retry_after_seconds: float = 1.0) -> None:
        """Let every row of the request wait, or none.

        Raises:
            QueueFull: the rows do not fit behind those that wait.
        """
        assert request not in self._thoughts, "a request is submitted once"
        free = self.max_waiting - self._waiting.size
        if request.rows > free:
            raise QueueFull(
                f"{request.rows} rows do not fit: {self._waiting.size} thoughts wait, the limit is {self.max_waiting}",
                retry_after_seconds=retry_after_seconds,
            )
        thoughts = {row: Thought(request, row, arrival=next(self._arrivals)) for row in range(request.rows)}
        self._thoughts[request] = thoughts
        for thought in thoughts.values():
            self._waiting.push(thought)

    def follow(self, last: Thought, inputs: Mapping[str, Array], now: float, *, park: bool = False) -> None:
        """Let a row's next link wait where its request waited, however many others do; or park it.

        Args:
            last: the link before, which has ended.
            inputs: the next one's, each [1, ...].
        """
        assert last.gone, "a link follows one that has ended"
        request = last.request
        link = Thought(request, last.row, arrival=last.arrival, link=last.link + 1, link_inputs=inputs, link_time=now)
        rows = self._thoughts.setdefault(request, {})
        assert link.row not in rows, "a row has one thought at a time"
        rows[link.row] = link
        self._begun.add(request)
        if park:
            self._waiting.park(link)
        else:
            self._waiting.push(link)

    def resume(self, request: Request, now: float) -> None:
        """Let the parked links of a request wait for slots, if there are any."""
        for thought in self._thoughts.get(request, {}).values():
            if thought in self._waiting.parked:
                thought.link_time = now
                self._waiting.resume(thought)

    def cancel(self, request: Request) -> list[Ended]:
        """Forget what is left of a request, if anything is; its slots are free before the next tick."""
        ended = []
        for thought in list(self._thoughts.get(request, {}).values()):
            if thought.slot is None:
                self._waiting.drop(thought)
                self._forget(thought)
                ended.append(Ended(thought, StopReason.CANCELLED))
            else:
                ended += self._end([thought.slot], [StopReason.CANCELLED])
        return ended

    def plan(self, now: float, *, horizon: float = 0.0) -> Plan:
        """Expire, then close gaps and admit, and say what to run.

        Args:
            now: seconds, on the clock that deadlines are on.
            horizon: seconds; a thought whose deadline is no further away ends now, so that its answer is in time. A
                request none of whose thoughts has run yet may wait until its deadline: one tick beats none.
        """
        late = self.table.expired(self._span, now + horizon)
        expired = self._end(late, [StopReason.DEADLINE] * len(late))
        for thought in self._waiting.expire(now, horizon, self._begun):
            self._forget(thought)
            expired.append(Ended(thought, StopReason.DEADLINE))
        admitted = self._admit(now)
        moves = self._close_gaps()
        return Plan(expired, moves, admitted, self._span)

    def record(
        self,
        certainty_n: NDArray[np.float32],
        finite_n: NDArray[np.bool_] | None = None,
        energy_n: NDArray[np.float32] | None = None,
        done_n: NDArray[np.bool_] | None = None,
        top_nP: NDArray[np.int64] | None = None,
    ) -> tuple[list[Ended], Verdict]:
        """Judge the tick of every running thought (see `SlotTable.judge`); those that stop give their slots back."""
        assert not self._gaps, "a tick runs what was planned, without gaps"
        assert len(certainty_n) == self._span, "every running thought ticks"
        verdict = self.table.judge(certainty_n, finite_n, energy_n, done_n, top_nP)
        stopped = verdict.reasons.nonzero()[0]
        return self._end(stopped.tolist(), [_REASONS[reason] for reason in verdict.reasons[stopped].tolist()]), verdict

    def end_all(self) -> list[Ended]:
        """End every thought as at its deadline: the grace of a drain is over."""
        slots = self._slots()
        ended = self._end(slots, [StopReason.DEADLINE] * len(slots))
        for thought in self._waiting.clear():
            self._forget(thought)
            ended.append(Ended(thought, StopReason.DEADLINE))
        return ended

    def _admit(self, now: float) -> list[Thought]:
        admitted: list[Thought] = []
        while len(admitted) < self.admissions_per_plan and self.num_running < self.num_slots:
            thought = self._waiting.pop()
            if thought is None:
                break
            slot = heapq.heappop(self._gaps) if self._gaps else self._span
            self._span = max(self._span, slot + 1)
            self._running[slot] = thought
            thought.slot, thought.admitted, thought.admission_time = slot, True, now
            self.table.admit(slot, thought.request)
            self._begun.add(thought.request)
            admitted.append(thought)
        return admitted

    def _close_gaps(self) -> list[tuple[int, int]]:
        moves = []
        while self._gaps:
            gap = heapq.heappop(self._gaps)
            while self._span > gap and self._running[self._span - 1] is None:
                self._span -= 1
            if self._span <= gap:
                self._gaps.clear()  # a heap gives the lowest first: what is left lies above the span
                break
            source = self._span - 1
            thought = self._at(source)
            self._running[gap], self._running[source] = thought, None
            thought.slot = gap
            self.table.move(source, gap)
            self._span = source
            moves.append((source, gap))
        return moves

    def _at(self, slot: int) -> Thought:
        thought = self._running[slot]
        assert thought is not None, f"slot {slot} runs no thought"
        return thought

    def _slots(self) -> list[int]:
        """Those of running thoughts."""
        return [slot for slot, thought in enumerate(self._running[: self._span]) if thought is not None]

    def _end(self, slots: Sequence[int], reasons: Iterable[StopReason]) -> list[Ended]:
        """Take the slots of running thoughts back."""
        if not slots:
            return []
        ended = []
        for slot, reason, standing in zip(slots, reasons, self.table.standings(slots), strict=True):
            thought = self._at(slot)
            ticks, answer_tick, certainty, energy = standing
            ended.append(
                Ended(
                    thought,
                    reason,
                    ticks_used=ticks,
                    answer_tick=answer_tick,
                    certainty=certainty if answer_tick else 0.0,
                    energy=None if isnan(energy) else energy,
                    slot=slot,
                )
            )
            self.table.leave(slot, thought.request)
            self._running[slot] = None
            heapq.heappush(self._gaps, slot)
            thought.slot, thought.gone = None, True
            self._forget(thought)
        return ended

    def _forget(self, thought: Thought) -> None:
        """Drop the request when none of its thoughts is left."""
        rows = self._thoughts[thought.request]
        del rows[thought.row]
        if not rows:
            del self._thoughts[thought.request]
            self._begun.discard(thought.request)
