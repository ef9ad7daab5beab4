"""The scheduler under every order of events: no slot leaks, none is owned twice, no thought is forgotten."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scripted import request, script

from serving.errors import QueueFull
from serving.request import Request, StopReason
from serving.scheduler import Ended, Plan, Scheduler

ROW = script([0.0])
MAX_WAITING = 12


class AnyOrder(RuleBasedStateMachine):
    """Submits, plans, ticks, follows up, parks, resumes, cancels and lets time pass, and keeps its own books."""

    @initialize(num_slots=st.integers(1, 5), admissions=st.integers(1, 4))
    def begin(self, num_slots: int, admissions: int) -> None:
        self.scheduler = Scheduler(num_slots=num_slots, max_waiting=MAX_WAITING, admissions_per_plan=admissions)
        self.now = 0.0
        self.left: dict[Request, set[int]] = {}  # request -> rows that have not ended
        self.links: dict[tuple[Request, int], int] = {}  # row -> the link that it is at
        self.parked: set[tuple[Request, int]] = set()
        self.slots: dict[int, tuple[Request, int]] = {}  # slot -> who runs there, by the plans' word
        self.ticks: dict[tuple[Request, int], int] = {}
        self.planned = 0

    def close_books(self, ended: list[Ended], random: np.random.Generator | None = None) -> None:
        """Strike out what ended.

        Args:
            random: says which rows go on with another link, and which of these are parked; none do without it.
        """
        for end in ended:
            key = (end.thought.request, end.thought.row)
            assert key[1] in self.left[key[0]], "a row ends once"
            assert end.thought.link == self.links[key], "links follow one another"
            if end.slot is None:
                assert key not in self.ticks, "only a thought that never ran ends without a slot"
                self.parked.discard(key)
            else:
                assert self.slots.pop(end.slot) == key, "a thought ends in the slot it was given"
                assert end.ticks_used == self.ticks.pop(key)
            if random is not None and random.uniform() < 0.4:
                park = bool(random.uniform() < 0.4)
                self.scheduler.follow(end.thought, {}, self.now, park=park)
                self.links[key] += 1
                if park:
                    self.parked.add(key)
            else:
                self.left[key[0]].discard(key[1])
        self.left = {asked: rows for asked, rows in self.left.items() if rows}

    @rule(
        rows=st.integers(1, 6),
        max_ticks=st.integers(1, 5),
        wait=st.one_of(st.none(), st.integers(1, 8)),
        priority=st.integers(-1, 1),
    )
    def submit(self, rows: int, max_ticks: int, wait: int | None, priority: int) -> None:
        deadline = float("inf") if wait is None else self.now + wait
        asked = request(*[ROW] * rows, max_ticks=max_ticks, deadline=deadline, priority=priority)
        waiting = self.scheduler.num_waiting
        try:
            self.scheduler.submit(asked)
        except QueueFull:
            assert waiting + rows > MAX_WAITING, "a request that fits is taken"
            assert self.scheduler.num_waiting == waiting, "a request that does not fit leaves nothing behind"
        else:
            assert waiting + rows <= MAX_WAITING, "a request that does not fit is refused"
            self.left[asked] = set(range(rows))
            self.links |= {(asked, row): 0 for row in range(rows)}

    @rule(seconds=st.integers(1, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(data=st.data())
    @precondition(lambda self: self.left)
    def cancel(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(list(self.left)))
        ended = self.scheduler.cancel(asked)
        assert {end.thought.row for end in ended} == self.left[asked], "all that is left of a request is cancelled"
        assert all(end.reason is StopReason.CANCELLED for end in ended)
        self.close_books(ended)
        assert self.scheduler.cancel(asked) == [], "cancelling twice does nothing"

    @rule(data=st.data())
    @precondition(lambda self: self.left)
    def resume(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(list(self.left)))
        waiting = self.scheduler.num_waiting
        self.scheduler.resume(asked, self.now)
        mine = {key for key in self.parked if key[0] is asked}
        assert self.scheduler.num_waiting == waiting + len(mine), "all that was parked of a request waits, and no other"
        self.parked -= mine

    @rule(seed=st.integers(0, 2**16), steps=st.integers(1, 3))
    def tick(self, seed: int, steps: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(steps):
            plan = self.scheduler.plan(self.now)
            self.follow(plan)
            n = plan.num_running
            for slot in range(n):
                self.ticks[self.slots[slot]] += 1
            if n:
                finite = random.uniform(size=n) > 0.05
                ended, _ = self.scheduler.record(random.uniform(size=n).astype(np.float32), finite)
                self.close_books(ended, random)

    def follow(self, plan: Plan) -> None:
        assert all(end.thought.request.deadline <= self.now for end in plan.expired)
        self.close_books(plan.expired)
        # Admissions fill the lowest gaps before any move is planned, and never a slot that a move takes from.
        for thought in plan.admitted:
            assert thought.slot is not None
            assert thought.slot not in self.slots, "a slot is given to one thought"
            self.slots[thought.slot] = (thought.request, thought.row)
            self.ticks[(thought.request, thought.row)] = 0
        for source, target in plan.moves:
            assert target not in self.slots, "a move never lands on a running thought"
            self.slots[target] = self.slots.pop(source)
        assert set(self.slots) == set(range(plan.num_running)), "running thoughts fill the first slots"
        assert not [asked for asked in self.left if asked.deadline <= self.now], "nothing outlives its deadline"
        if self.scheduler.num_waiting and len(plan.admitted) < self.scheduler.admissions_per_plan:
            assert plan.num_running == self.scheduler.num_slots, "no slot stays free while a thought waits"

    @invariant()
    def every_thought_waits_or_runs(self) -> None:
        if hasattr(self, "scheduler"):
            waiting = sum(len(rows) for rows in self.left.values()) - len(self.slots) - len(self.parked)
            assert self.scheduler.num_waiting == waiting
            assert self.scheduler.num_running == len(self.slots)
            assert self.scheduler.idle == (not waiting and not self.slots)
            if self.scheduler.idle:
                deadlines = [asked.deadline for asked, _ in self.parked]
                assert self.scheduler.next_parked_deadline == min(deadlines, default=float("inf"))
            running = {(thought.request, thought.row) for thought in self.scheduler.running()}
            assert running == set(self.slots.values())

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            self.close_books(self.scheduler.end_all())
            assert self.scheduler.idle
            assert not self.left
            assert not self.slots
            assert not self.parked
            assert not self.scheduler._begun


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)
test_any_order_of_events_leaks_no_slot_and_ends_each_row_once = AnyOrder.TestCase


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(1, 5)), min_size=1, max_size=20))
def test_thoughts_are_admitted_by_priority_then_deadline_then_arrival(asked):
    scheduler = Scheduler(num_slots=1, max_waiting=64, admissions_per_plan=1)
    requests = [
        request(ROW, priority=p, deadline=1000.0 + d, max_ticks=1, request_id=str(k)) for k, (p, d) in enumerate(asked)
    ]
    for each in requests:
        scheduler.submit(each)
    order = []
    while not scheduler.idle:
        plan = scheduler.plan(0.0)
        order += [int(thought.request.request_id) for thought in plan.admitted]
        scheduler.record(np.zeros(plan.num_running, np.float32), np.ones(plan.num_running, bool))
    assert order == sorted(range(len(asked)), key=lambda k: (-asked[k][0], asked[k][1], k))


def test_heaps_forget_thoughts_that_ended_long_before_their_deadline():
    scheduler = Scheduler(num_slots=4, max_waiting=64, admissions_per_plan=4)
    for _ in range(5_000):
        scheduler.submit(request(ROW, deadline=1e9, max_ticks=1))
        plan = scheduler.plan(0.0)
        scheduler.record(np.zeros(plan.num_running, np.float32), np.ones(plan.num_running, bool))
    assert scheduler.idle
    assert len(scheduler._waiting.deadlines) < 100
    assert not scheduler._begun


def test_heaps_forget_cancelled_thoughts():
    scheduler = Scheduler(num_slots=1, max_waiting=10_000, admissions_per_plan=1)
    stays = request(ROW, deadline=9e9)
    scheduler.submit(stays)
    scheduler.plan(0.0)
    for _ in range(1_000):
        leaver = request(ROW, deadline=1e9)
        scheduler.submit(leaver)
        scheduler.cancel(leaver)
    assert len(scheduler._waiting.order) < 100
    assert len(scheduler._waiting.deadlines) < 100
