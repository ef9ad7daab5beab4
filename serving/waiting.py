"""Thoughts that wait for a slot: in the order of their admission, and the same by deadline. Plain data.

Beside them, those that are parked: links of a chain whose caller has yet to read what came before.
"""

import heapq
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from math import inf

from serving.request import Array, Request


@dataclass(slots=True, eq=False)
class Thought:
    """One row of a request, thinking or waiting to; in a chain, one link of it."""

    request: Request
    row: int
    slot: int | None = None
    admitted: bool = False
    gone: bool = False
    admission_time: float = inf
    arrival: int = 0
    """Its row's place in the order of arrival."""
    link: int = 0
    link_inputs: Mapping[str, Array] | None = None
    """A later link's own, each [1, ...]."""
    link_time: float = 0.0
    """Since when a later link waits for a slot, in monotonic seconds."""

    def input(self, name: str) -> Array:
        """What this row begins with, [1, ...]."""
        if self.link_inputs is not None:
            return self.link_inputs[name]
        return self.request.inputs[name][self.row : self.row + 1]

    @property
    def queue_seconds(self) -> float:
        """How long it waited for its slot, once it has been admitted."""
        return max(0.0, self.admission_time - (self.link_time if self.link else self.request.arrival))


@dataclass(slots=True)
class Waiting:
    """Thoughts in the order of their admission, and the same by deadline."""

    order: list[tuple[tuple[int, float, int], Thought]] = field(default_factory=list)
    deadlines: list[tuple[float, int, int, Thought]] = field(default_factory=list)
    size: int = 0
    """Thoughts that wait for a slot; those that are parked do not."""
    parked: dict[Thought, None] = field(default_factory=dict)

    def push(self, thought: Thought) -> None:
        self._enter(thought)
        self._watch(thought)

    def park(self, thought: Thought) -> None:
        """Keep a thought out of the order of admission until it is resumed; its deadline counts meanwhile."""
        self.parked[thought] = None
        self._watch(thought)

    def resume(self, thought: Thought) -> None:
        """Let a parked thought take the place in the order that its arrival gives it."""
        del self.parked[thought]
        self._enter(thought)

    def pop(self) -> Thought | None:
        while self.order:
            thought = heapq.heappop(self.order)[1]
            if not thought.gone:
                self.size -= 1
                return thought
        return None

    def expire(self, now: float, horizon: float, begun: Container[Request]) -> list[Thought]:
        """Take out what is too late: at its deadline; within the horizon of it when its request has begun."""
        expired, early = [], []
        while self.deadlines and self.deadlines[0][0] <= now + horizon:
            entry = heapq.heappop(self.deadlines)
            thought = entry[-1]
            if thought.gone or thought.admitted:
                continue
            if entry[0] > now and thought.request not in begun:
                early.append(entry)
                continue
            self.drop(thought)
            expired.append(thought)
        for entry in early:
            heapq.heappush(self.deadlines, entry)
        return expired

    def next_parked_deadline(self) -> float:
        """The earliest deadline of what is parked, when nothing waits."""
        if not self.parked:
            return inf
        while self.deadlines and (self.deadlines[0][-1].gone or self.deadlines[0][-1].admitted):
            heapq.heappop(self.deadlines)
        return self.deadlines[0][0] if self.deadlines else inf

    def drop(self, thought: Thought) -> None:
        """Take a thought out; the heaps forget it when they meet it, or all at once when most of them is gone."""
        thought.gone = True
        if thought in self.parked:
            del self.parked[thought]
        else:
            self.size -= 1
            if len(self.order) > 64 and len(self.order) > 2 * self.size:
                self.order = [entry for entry in self.order if not entry[1].gone]
                heapq.heapify(self.order)
        self._forget_deadlines()

    def clear(self) -> list[Thought]:
        left = [entry[1] for entry in sorted(self.order, key=lambda entry: entry[0]) if not entry[1].gone]
        left += self.parked
        for thought in left:
            thought.gone = True
        self.order, self.deadlines, self.size, self.parked = [], [], 0, {}
        return left

    def _enter(self, thought: Thought) -> None:
        request = thought.request
        heapq.heappush(self.order, ((-request.priority, request.deadline, thought.arrival), thought))
        self.size += 1

    def _watch(self, thought: Thought) -> None:
        if thought.request.deadline < inf:
            # The links of one row share its arrival, and an earlier one may still lie in the heap.
            heapq.heappush(self.deadlines, (thought.request.deadline, thought.arrival, thought.link, thought))
            self._forget_deadlines()

    def _forget_deadlines(self) -> None:
        if len(self.deadlines) > 64 and len(self.deadlines) > 2 * (self.size + len(self.parked)):
            self.deadlines = [entry for entry in self.deadlines if not entry[-1].gone and not entry[-1].admitted]
            heapq.heapify(self.deadlines)
