"""Thoughts that wait for a slot: in the order of their admission, and the same by deadline. Plain data."""

import heapq
from collections.abc import Container
from dataclasses import dataclass, field
from math import inf

from serving.request import Request


@dataclass(slots=True, eq=False)
class Thought:
    """One row of a request, thinking or waiting to."""

    request: Request
    row: int
    slot: int | None = None
    admitted: bool = False
    gone: bool = False
    admission_time: float = inf


@dataclass(slots=True)
class Waiting:
    """Thoughts in the order of their admission, and the same by deadline."""

    order: list[tuple[tuple[int, float, int], Thought]] = field(default_factory=list)
    deadlines: list[tuple[float, int, Thought]] = field(default_factory=list)
    size: int = 0

    def push(self, thought: Thought, arrival: int) -> None:
        request = thought.request
        heapq.heappush(self.order, ((-request.priority, request.deadline, arrival), thought))
        if request.deadline < inf:
            heapq.heappush(self.deadlines, (request.deadline, arrival, thought))
            self._forget_deadlines()
        self.size += 1

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
            thought = entry[2]
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

    def drop(self, thought: Thought) -> None:
        """Take a thought out; the heaps forget it when they meet it, or all at once when most of them is gone."""
        thought.gone = True
        self.size -= 1
        if len(self.order) > 64 and len(self.order) > 2 * self.size:
            self.order = [entry for entry in self.order if not entry[1].gone]
            heapq.heapify(self.order)
        self._forget_deadlines()

    def _forget_deadlines(self) -> None:
        if len(self.deadlines) > 64 and len(self.deadlines) > 2 * self.size:
            self.deadlines = [entry for entry in self.deadlines if not entry[2].gone and not entry[2].admitted]
            heapq.heapify(self.deadlines)

    def clear(self) -> list[Thought]:
        left = [entry[1] for entry in sorted(self.order, key=lambda entry: entry[0]) if not entry[1].gone]
        for thought in left:
            thought.gone = True
        self.order, self.deadlines, self.size = [], [], 0
        return left
