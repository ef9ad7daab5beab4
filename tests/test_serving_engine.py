"""The thought loop on scripted thoughts: when they stop, what they answer, who may go first."""

from collections.abc import Callable
from math import inf

import numpy as np
import pytest
from scripted import TICKS, ScriptedBackend, request, script

from serving.engine import Engine, StepReport
from serving.errors import BackendFailed, DeadlineExceeded, QueueFull, Unavailable
from serving.events import Answer, Event, Failure, Summary, Tick
from serving.request import AnswerRule, Request, StopReason, StreamPolicy
from serving.scheduler import Scheduler


class Clock:
    """Stands still until it is told the time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_engine(
    num_slots: int = 4, *, max_waiting: int = 64, admissions: int = 8, clock: Clock | None = None
) -> Engine:
    scheduler = Scheduler(num_slots=num_slots, max_waiting=max_waiting, admissions_per_plan=admissions)
    backend = ScriptedBackend(num_slots, admissions)
    return Engine(backend, scheduler, clock=clock or Clock(), deadline_margin_seconds=0.0)


def run(engine: Engine, *requests: Request, steps: int = 200) -> dict[Request, list[Event]]:
    """Submit and step until idle; every request's events."""
    for asked in requests:
        engine.submit(asked)
    events: dict[Request, list[Event]] = {asked: [] for asked in requests}
    for _ in range(steps):
        if engine.idle:
            return events
        report = StepReport()
        engine.step(report)
        for asked, event in report.events:
            events.setdefault(asked, []).append(event)
    raise AssertionError(f"still not idle after {steps} steps")


def answer(engine: Engine, asked: Request) -> Answer:
    answers = [event for event in run(engine, asked)[asked] if isinstance(event, Answer)]
    assert len(answers) == 1
    return answers[0]


RISING = [0.1, 0.2, 0.5, 0.6, 0.7, 0.9, 0.95, 0.99]


@pytest.mark.parametrize(
    ("row", "stop", "reason", "ticks", "answer_tick"),
    [
        pytest.param(script([0.95]), {"certainty_threshold": 0.9}, StopReason.CERTAIN, 1, 1, id="sure at once"),
        pytest.param(
            script(RISING), {"certainty_threshold": 0.5}, StopReason.CERTAIN, 3, 3, id="threshold is inclusive"
        ),
        pytest.param(script([1.5, 0.2]), {"certainty_threshold": 1.0}, StopReason.CERTAIN, 1, 1, id="clamped above"),
        pytest.param(script([-0.5]), {"certainty_threshold": 0.0}, StopReason.CERTAIN, 1, 1, id="clamped below"),
        pytest.param(script(RISING), {}, StopReason.TICK_BUDGET, 8, 8, id="no threshold"),
        pytest.param(
            script([0.3, 0.2]), {"max_ticks": 3}, StopReason.TICK_BUDGET, 3, 1, id="most certain is the first"
        ),
        pytest.param(script([0.3, 0.3]), {"max_ticks": 3}, StopReason.TICK_BUDGET, 3, 1, id="earliest of equals"),
        pytest.param(
            script([0.95, 0.9, 0.91]),
            {"certainty_threshold": 0.9, "min_ticks": 3},
            StopReason.CERTAIN,
            3,
            1,
            id="min ticks",
        ),
        pytest.param(
            script([0.99], classes=[0, 1, 1, 2, 2, 2]),
            {"certainty_threshold": 0.9, "patience": 3},
            StopReason.CERTAIN,
            6,
            6,
            id="patience: top unchanged over three ticks, and the answer is the stopping tick's",
        ),
        pytest.param(
            script([0.5], energies=[9, 5, 2]),
            {"energy_threshold": 2.0},
            StopReason.ENERGY,
            3,
            3,
            id="energy low enough",
        ),
        pytest.param(
            script([0.9, 0.5], energies=[9, 5, 4.995]),
            {"energy_delta": 0.01},
            StopReason.ENERGY,
            3,
            3,
            id="energy settled",
        ),
        pytest.param(
            script([0.5], energies=[1]),
            {"energy_threshold": 2.0, "min_ticks": 4},
            StopReason.ENERGY,
            4,
            4,
            id="energy waits",
        ),
        pytest.param(
            script([0.9, 0.5], done_at=2), {"min_ticks": 5}, StopReason.MODEL_DONE, 2, 1, id="done does not wait"
        ),
        pytest.param(
            script([0.5], done_at=2), {"model_done": False}, StopReason.TICK_BUDGET, 8, 1, id="done switched off"
        ),
        pytest.param(
            script([0.9, 0.2, 0.3], nan_at=4), {}, StopReason.DIVERGED, 4, 3, id="diverged: the last finite tick"
        ),
        pytest.param(script([0.9], nan_at=1), {}, StopReason.DIVERGED, 1, 0, id="diverged at once: no answer"),
        pytest.param(
            script([0.5, inf]), {"certainty_threshold": 0.9}, StopReason.DIVERGED, 2, 1, id="infinite certainty"
        ),
        pytest.param(
            script([0.95], energies=[0], done_at=1, nan_at=1),
            {"certainty_threshold": 0.9, "energy_threshold": 1.0, "max_ticks": 1},
            StopReason.DIVERGED,
            1,
            0,
            id="order: diverged first",
        ),
        pytest.param(
            script([0.95], energies=[0], done_at=1),
            {"certainty_threshold": 0.9, "energy_threshold": 1.0, "max_ticks": 1},
            StopReason.MODEL_DONE,
            1,
            1,
            id="order: then the model's wish",
        ),
        pytest.param(
            script([0.95], energies=[0]),
            {"certainty_threshold": 0.9, "energy_threshold": 1.0, "max_ticks": 1},
            StopReason.CERTAIN,
            1,
            1,
            id="order: then certainty",
        ),
        pytest.param(
            script([0.5], energies=[0]),
            {"certainty_threshold": 0.9, "energy_threshold": 1.0, "max_ticks": 1},
            StopReason.ENERGY,
            1,
            1,
            id="order: then energy, before the budget",
        ),
    ],
)
def test_when_and_why_a_thought_stops(row, stop, reason, ticks, answer_tick):
    got = answer(make_engine(), request(row, **stop))
    assert (got.stop_reason, got.ticks_used, got.answer_tick) == (reason, ticks, answer_tick)
    if answer_tick == 0:
        assert got.prediction is None
        assert got.certainty == 0.0
    else:
        assert got.prediction.max() == answer_tick  # scripts mark each tick's prediction with its number


@pytest.mark.parametrize(
    ("rule", "answer_tick"), [pytest.param(AnswerRule.MOST_CERTAIN, 2, id="most certain"), (AnswerRule.LAST, 3)]
)
def test_the_answer_rule_chooses_the_tick(rule, answer_tick):
    got = answer(make_engine(), request(script([0.1, 0.8, 0.3]), answer_rule=rule, max_ticks=3))
    assert got.answer_tick == answer_tick
    assert got.prediction.max() == answer_tick


@pytest.mark.parametrize(
    ("certainty", "below", "abstained"),
    [
        pytest.param(0.5, 0.6, True, id="less certain than asked"),
        pytest.param(0.5, 0.5, False, id="as certain as asked"),
        pytest.param(0.5, 0.0, False, id="never"),
    ],
)
def test_an_unsure_answer_abstains(certainty, below, abstained):
    asked = request(script([certainty]), abstain_below=below)
    *_, given, summary = run(make_engine(), asked)[asked]
    assert given.abstained is abstained
    assert summary.abstain_mask == [abstained]


def test_a_diverged_thought_abstains_however_sure_it_was():
    got = answer(make_engine(), request(script([0.99], nan_at=3)))
    assert got.abstained
    assert got.certainty == pytest.approx(0.99)


def test_each_row_stops_by_itself_and_the_summary_counts_all():
    rows = [script([0.95]), script(RISING), script([0.2])]
    asked = request(*rows, certainty_threshold=0.9, abstain_below=0.5)
    events = run(make_engine(), asked)[asked]
    answers = {event.row: event for event in events if isinstance(event, Answer)}
    assert [answers[row].ticks_used for row in range(3)] == [1, 6, 8]
    assert events[-1] == Summary([False, False, True], [0, 0, 1], 15, 0.0, 0.0)


@pytest.mark.parametrize("num_slots", [1, 2, 3, 5])
def test_more_rows_than_slots_are_admitted_one_by_one(num_slots):
    rows = [script([*RISING[k:], 1.0], classes=[k % 3]) for k in range(7)]
    asked = request(*rows, certainty_threshold=0.9)
    events = run(make_engine(num_slots), asked)[asked]
    answers = sorted((event for event in events if isinstance(event, Answer)), key=lambda event: event.row)
    assert [given.ticks_used for given in answers] == [6, 5, 4, 3, 2, 1, 1]
    assert [int(given.prediction.argmax()) for given in answers] == [0, 1, 2, 0, 1, 2, 0]


def test_a_freed_slot_is_taken_before_the_next_tick():
    engine = make_engine(num_slots=2)
    run(engine, *(request(script([0.1, 0.95]), certainty_threshold=0.9) for _ in range(10)))
    assert engine.backend.num_ticks == 10  # two slots, two ticks each, never an empty one


@pytest.mark.parametrize(
    ("every", "ticks"),
    [
        pytest.param(1, [1, 2, 3, 4, 5], id="each"),
        pytest.param(2, [2, 4], id="every second"),
        pytest.param(0, [], id="none"),
    ],
)
def test_ticks_are_streamed_as_asked(every, ticks):
    asked = request(script(RISING), every=every, max_ticks=5)
    streamed = [event for event in run(make_engine(), asked)[asked] if isinstance(event, Tick)]
    assert [event.tick for event in streamed] == ticks
    assert [event.certainty for event in streamed] == pytest.approx([RISING[tick - 1] for tick in ticks])


def test_a_tick_carries_what_was_asked_for():
    stream = StreamPolicy(every=1, predictions=True, top_k=2, details=("place",))
    asked = request(script(RISING, classes=[2]), stream=stream, max_ticks=2)
    bare = request(script(RISING), every=1, max_ticks=2)
    events = run(make_engine(), asked, bare)
    second = events[asked][1]
    assert second.prediction.tolist() == [0, 0, 2]
    assert second.leading.indices.tolist() == [[2, 0]]
    assert second.leading.scores[0, 0] == pytest.approx(np.exp(2) / (np.exp(2) + 2), rel=1e-6)
    assert second.details["place"].tolist() == [1]
    assert (events[bare][1].prediction, events[bare][1].leading, events[bare][1].details) == (None, None, {})


def test_larger_priority_then_earlier_deadline_then_arrival_goes_first():
    engine = make_engine(num_slots=1)
    asked = {
        "plain": request(script([1.0]), max_ticks=1, request_id="plain"),
        "second": request(script([1.0]), max_ticks=1, request_id="second"),
        "late": request(script([1.0]), max_ticks=1, deadline=500, request_id="late"),
        "soon": request(script([1.0]), max_ticks=1, deadline=100, request_id="soon"),
        "urgent": request(script([1.0]), max_ticks=1, priority=1, request_id="urgent"),
    }
    for each in asked.values():
        engine.submit(each)
    order = []
    while not engine.idle:
        report = StepReport()
        engine.step(report)
        order += [each.request_id for each, event in report.events if isinstance(event, Answer)]
    assert order == ["urgent", "soon", "late", "plain", "second"]


def test_encoding_is_capped_so_that_running_thoughts_go_on():
    engine = make_engine(num_slots=8, admissions=2)
    engine.submit(request(*[script([0.1])] * 6))
    admitted = []
    for _ in range(4):
        report = StepReport()
        engine.step(report)
        admitted.append((len(report.admitted), report.num_ticked))
    assert admitted == [(2, 2), (2, 4), (2, 6), (0, 6)]


def test_a_full_queue_refuses_the_whole_request_and_says_when_to_come_back():
    engine = make_engine(num_slots=1, max_waiting=3)
    engine.submit(request(script([0.1]), script([0.1])))
    with pytest.raises(QueueFull, match=r"2 rows do not fit: 2 thoughts wait, the limit is 3") as refused:
        engine.submit(request(script([0.1]), script([0.1])))
    assert refused.value.retry_after_seconds > 0
    engine.submit(request(script([0.1])))
    assert engine.scheduler.num_waiting == 3


class TestDeadline:
    def step(self, engine: Engine, clock: Clock, now: float) -> list[Event]:
        clock.now = now
        report = StepReport()
        engine.step(report)
        return [event for _, event in report.events]

    def test_the_best_answer_so_far_goes_out_in_time(self):
        clock = Clock()
        engine = make_engine(clock=clock)
        engine.submit(request(script([0.2, 0.7, 0.3]), deadline=10.0))
        for now in (1.0, 2.0, 3.0):
            assert self.step(engine, clock, now) == []
        given, summary = self.step(engine, clock, 10.0)
        assert (given.stop_reason, given.ticks_used, given.answer_tick) == (StopReason.DEADLINE, 3, 2)
        assert given.prediction.max() == 2
        assert summary.ticks_used == 3
        assert engine.idle

    def test_a_request_of_which_no_row_ticked_fails(self):
        clock = Clock()
        engine = make_engine(num_slots=1, clock=clock)
        engine.submit(request(script([0.1])))
        self.step(engine, clock, 0.0)
        engine.submit(request(script([0.1]), script([0.1]), deadline=1.0))
        (failure,) = self.step(engine, clock, 2.0)
        assert isinstance(failure, Failure)
        assert isinstance(failure.error, DeadlineExceeded)
        assert engine.scheduler.num_waiting == 0

    def test_rows_that_never_ticked_answer_empty_and_abstained(self):
        clock = Clock()
        engine = make_engine(num_slots=1, clock=clock)
        engine.submit(request(script([0.4]), script([0.4]), deadline=5.0))
        self.step(engine, clock, 0.0)
        first, second, summary = self.step(engine, clock, 5.0)
        assert (first.ticks_used, first.abstained) == (1, False)
        assert (second.ticks_used, second.answer_tick, second.prediction, second.abstained) == (0, 0, None, True)
        assert summary.abstain_mask == [False, True]

    def test_the_margin_leaves_time_for_the_answer_to_travel(self):
        clock = Clock()
        scheduler = Scheduler(num_slots=1, max_waiting=8, admissions_per_plan=8)
        engine = Engine(ScriptedBackend(1), scheduler, clock=clock, deadline_margin_seconds=0.5)
        engine.submit(request(script([0.4]), deadline=10.0))
        assert self.step(engine, clock, 9.4) == []
        given, _ = self.step(engine, clock, 9.5)
        assert given.stop_reason is StopReason.DEADLINE


class TestSlowSteps:
    """A backend whose ticks take time by the engine's own clock."""

    def engine(self, clock: Clock, seconds: list[float]) -> Engine:
        class Slow(ScriptedBackend):
            def _tick(self, rows, side, details):
                super()._tick(rows, side, details)
                clock.now += seconds.pop(0) if len(seconds) > 1 else seconds[0]

        scheduler = Scheduler(num_slots=2, max_waiting=8, admissions_per_plan=8)
        return Engine(Slow(2), scheduler, clock=clock, deadline_margin_seconds=0.02)

    def test_one_slow_tick_does_not_shut_short_deadlines_out(self):
        clock = Clock()
        engine = self.engine(clock, [2.0, 0.001])
        run(engine, request(script([0.1]), max_ticks=1))
        used = []
        for _ in range(40):
            *_, given, _ = run(
                engine, request(script([0.95]), certainty_threshold=0.9, deadline=clock.now + 1.0)
            ).popitem()[1]
            used.append((given.stop_reason, given.ticks_used))
        assert {ticks for _, ticks in used} == {1}, "each has its tick, whatever the last slow one took"
        late = request(script(RISING), certainty_threshold=0.9, deadline=clock.now + 1.0)
        assert run(engine, late)[late][0].stop_reason is StopReason.CERTAIN, "and the slow one is forgotten"

    def test_a_deadline_within_the_margin_still_gets_one_tick(self):
        clock = Clock()
        engine = self.engine(clock, [0.001])
        asked = request(script(RISING), deadline=clock.now + 0.005)
        given, _ = run(engine, asked)[asked]
        assert (given.stop_reason, given.ticks_used) == (StopReason.DEADLINE, 1)

    def test_a_deadline_that_has_passed_gets_none(self):
        clock = Clock()
        clock.now = 5.0
        engine = self.engine(clock, [0.001])
        asked = request(script(RISING), deadline=4.0)
        (failure,) = run(engine, asked)[asked]
        assert isinstance(failure.error, DeadlineExceeded)
        assert engine.backend.num_ticks == 0

    def test_waiting_rows_answer_with_the_running_rows_of_their_request(self):
        clock = Clock()
        engine = self.engine(clock, [0.1])
        asked = request(*[script([0.1])] * 4, deadline=0.5)
        events = run(engine, asked)[asked]
        assert clock.now < 0.5, "the whole request is answered in time, not only the rows that run"
        assert [event.ticks_used for event in events[:-1]].count(0) == 2


def test_cancelling_frees_the_slot_before_the_next_tick():
    engine = make_engine(num_slots=1)
    leaver, waiter = request(script([0.1])), request(script([0.95]), certainty_threshold=0.9)
    engine.submit(leaver)
    engine.submit(waiter)
    engine.step(StepReport())
    report = StepReport()
    engine.cancel(leaver, report)
    assert [(end.reason, end.ticks_used) for end in report.ended] == [(StopReason.CANCELLED, 1)]
    engine.step(report)
    assert [type(event) for asked, event in report.events if asked is waiter] == [Answer, Summary]
    assert not [event for asked, event in report.events if asked is leaver]


@pytest.mark.parametrize("what", ["fail_next_encode", "fail_next_tick"])
def test_a_failing_backend_fails_the_requests_it_held_and_serves_the_next(what):
    engine = make_engine(num_slots=2)
    held, next_one = request(script([0.1]), script([0.1]), script([0.1])), request(script([0.9]), max_ticks=1)
    setattr(engine.backend, what, True)
    events = run(engine, held)
    (failure,) = events[held]
    assert isinstance(failure.error, BackendFailed)
    assert answer(engine, next_one).answer_tick == 1


def test_when_the_grace_ends_running_thoughts_answer_and_waiting_requests_are_unavailable():
    engine = make_engine(num_slots=1)
    running, waiting = request(script([0.4])), request(script([0.4]))
    engine.submit(running)
    engine.submit(waiting)
    engine.step(StepReport())
    report = StepReport()
    engine.end_all(report)
    events = dict.fromkeys((running, waiting))
    events |= dict(reversed(report.events))
    assert events[running].stop_reason is StopReason.DEADLINE
    assert isinstance(events[waiting].error, Unavailable)
    assert engine.idle


@pytest.mark.parametrize("num_slots", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_a_scripted_thought_is_the_same_alone_or_in_company(num_slots, seed):
    random = np.random.default_rng(seed)
    rows = [
        script(random.uniform(0, 1, TICKS).tolist(), classes=random.integers(0, 3, TICKS).tolist()) for _ in range(12)
    ]
    make: Callable[[dict], Request] = lambda row: request(row, every=1, certainty_threshold=0.9, patience=1 + seed % 3)  # noqa: E731
    alone = [run(make_engine(1), asked)[asked] for asked in map(make, rows)]
    together = [make(row) for row in rows]
    company = run(make_engine(num_slots), *together)
    for mine, asked in zip(alone, together, strict=True):
        for one, other in zip(mine[:-1], company[asked][:-1], strict=True):
            assert (one.certainty, one.row) == (other.certainty, other.row)
            if isinstance(one, Answer):
                assert (one.stop_reason, one.answer_tick) == (other.stop_reason, other.answer_tick)
                np.testing.assert_array_equal(one.prediction, other.prediction)
