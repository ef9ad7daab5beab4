"""Chains on scripted thoughts: how links follow one another, why they end, what a caller who does not read costs."""

from collections.abc import Mapping
from functools import cache
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import TICKS, ScriptedBackend, ScriptedChain, request, script

from serving.chain import Chain, next_link
from serving.chance import Chance
from serving.engine import Engine, StepReport
from serving.errors import BackendFailed, DeadlineExceeded, QueueFull, Unavailable
from serving.events import Answer, Event, Failure, Summary, Tick
from serving.request import Array, ChainEnd, Request, StopReason
from serving.scheduler import Scheduler

SURE, SLOW = script([0.95]), script([0.1, 0.95])
UNSURE = script([0.2])
STOP = {"certainty_threshold": 0.9, "max_ticks": 3}


class Caller:
    """An engine at one's own pace: time passes when told to, and answers are read when told to."""

    def __init__(self, num_slots: int = 2, *, chain_ahead: int = 32, max_waiting: int = 64) -> None:
        self.now = 0.0
        self.events: dict[Request, list[Event]] = {}
        self.unread: dict[Request, int] = {}
        scheduler = Scheduler(num_slots=num_slots, max_waiting=max_waiting, admissions_per_plan=8)
        self.engine = Engine(
            ScriptedBackend(num_slots),
            scheduler,
            clock=lambda: self.now,
            deadline_margin_seconds=0.0,
            chain_ahead=chain_ahead,
        )

    def submit(self, *requests: Request) -> None:
        for asked in requests:
            self.engine.submit(asked)
            self.events[asked] = []

    def step(self) -> StepReport:
        report = StepReport()
        self.engine.step(report)
        return self.take(report)

    def take(self, report: StepReport) -> StepReport:
        for asked, event in report.events:
            self.events[asked].append(event)
            self.unread[asked] = self.unread.get(asked, 0) + isinstance(event, Answer)
        return report

    def think(self, *, read: bool = True) -> int:
        """Step until nothing is left to do now; the number of steps."""
        for steps in range(1000):
            if read:
                self.read(*self.events)
            if self.engine.idle:
                return steps
            self.step()
        raise AssertionError("still not idle after 1000 steps")

    def read(self, *requests: Request) -> None:
        for asked in requests:
            if answers := self.unread.pop(asked, 0):
                self.engine.read(asked, answers)

    def end_all(self) -> None:
        report = StepReport()
        self.engine.end_all(report)
        self.take(report)

    def answers(self, asked: Request) -> list[Answer]:
        return [event for event in self.events[asked] if isinstance(event, Answer)]


def chained(*rows: list[dict[str, Array]], fails: str = "", **fields: object) -> Request:
    """A request whose rows are chains of these scripts."""
    chain = ScriptedChain(*(links[1:] for links in rows), fails=fails)
    return request(*(links[0] for links in rows), chain=chain, **(STOP | fields))


def test_each_link_thinks_for_itself_and_the_summary_counts_them_all():
    caller = Caller()
    asked = chained([SLOW, UNSURE, SURE], [UNSURE], every=1, abstain_below=0.5)
    caller.submit(asked)
    caller.think()
    ticks = [(event.row, event.link, event.tick) for event in caller.events[asked] if isinstance(event, Tick)]
    assert sorted(ticks) == [
        *((0, 0, tick) for tick in (1, 2)),
        *((0, 1, tick) for tick in (1, 2, 3)),
        (0, 2, 1),
        *((1, 0, tick) for tick in (1, 2, 3)),
    ]
    answers = sorted(caller.answers(asked), key=lambda answer: (answer.row, answer.link))
    assert [(each.row, each.link, each.ticks_used, each.text, each.chain_end) for each in answers] == [
        (0, 0, 2, "0 ", ChainEnd.GOES_ON),
        (0, 1, 3, "1 ", ChainEnd.GOES_ON),
        (0, 2, 1, "2 ", ChainEnd.MAX_LINKS),
        (1, 0, 3, "0 ", ChainEnd.MAX_LINKS),
    ]
    summary = caller.events[asked][-1]
    assert summary == Summary([False, True], [1, 1], 9, 0.0, 0.0, seed=7, texts=["0 1 2 ", "0 "])


def test_a_single_thought_says_nothing_of_chains():
    caller = Caller()
    asked = request(SURE, **STOP)
    caller.submit(asked)
    caller.think()
    answer, summary = caller.events[asked]
    assert (answer.link, answer.text, answer.chain_end, answer.outputs) == (0, "", ChainEnd.GOES_ON, {})
    assert (summary.seed, summary.texts) == (None, [])


def test_a_link_goes_in_front_of_whoever_came_later():
    caller = Caller(num_slots=1)
    first, later, last = chained([SURE] * 3), chained([SURE] * 2), request(SURE, **STOP)
    caller.submit(first)
    caller.step()
    caller.submit(later, last)
    order = []
    while not caller.engine.idle:
        order += [(end.thought.request, end.thought.link) for end in caller.step().ended]
    assert order == [(first, 1), (first, 2), (later, 0), (later, 1), (last, 0)]


def test_a_link_is_never_refused_however_many_wait():
    caller = Caller(num_slots=2, max_waiting=2)
    first, later = chained([SLOW] * 2, [SLOW] * 2), request(SURE, SURE, **STOP)
    caller.submit(first)
    caller.step()
    caller.submit(later)
    caller.step()
    assert caller.engine.scheduler.num_waiting == 4
    with pytest.raises(QueueFull, match="1 rows do not fit: 4 thoughts wait, the limit is 2"):
        caller.submit(request(SURE))
    caller.think()
    assert [type(caller.events[asked][-1]) for asked in (first, later)] == [Summary, Summary]


def test_a_link_waits_for_a_request_of_larger_priority():
    caller = Caller(num_slots=1)
    chain, urgent = chained([SURE] * 2), request(SURE, priority=1, **STOP)
    caller.submit(chain)
    caller.step()
    caller.submit(urgent)
    caller.step()
    assert [len(caller.answers(asked)) for asked in (chain, urgent)] == [1, 1]


def test_a_slot_is_given_to_the_next_link_before_the_next_tick():
    caller = Caller(num_slots=1)
    caller.submit(chained([SLOW] * 10))
    assert caller.think() == 20, "two ticks a link and not one step between"


class TestEarlyEnds:
    def test_a_thought_that_diverges_is_its_rows_last(self):
        caller = Caller()
        asked = chained([SURE, script([0.5], nan_at=2), SURE], [SURE, SURE])
        caller.submit(asked)
        caller.think()
        ends = {(each.row, each.link): (each.stop_reason, each.chain_end) for each in caller.answers(asked)}
        assert ends[0, 1] == (StopReason.DIVERGED, ChainEnd.INTERRUPTED)
        assert (0, 2) not in ends
        assert ends[1, 1] == (StopReason.CERTAIN, ChainEnd.MAX_LINKS), "the other row goes on"
        assert caller.events[asked][-1].abstain_mask == [True, False]

    def test_a_chain_may_be_done_before_it_is_asked_to_end(self):
        class Content(ScriptedChain):
            def follow(self, answer: Answer) -> Mapping[str, Array] | None:
                if answer.link == 1:
                    answer.chain_end = ChainEnd.STOP_TEXT
                return super().follow(answer)

        caller = Caller()
        asked = request(SURE, chain=Content([SURE] * 5), **STOP)
        caller.submit(asked)
        caller.think()
        assert [each.chain_end for each in caller.answers(asked)] == [ChainEnd.GOES_ON, ChainEnd.STOP_TEXT]

    def test_the_deadline_sends_the_best_answer_of_the_link_that_thinks(self):
        caller = Caller()
        asked = chained([SURE, script([0.2, 0.6, 0.3]), SURE], deadline=10.0, certainty_threshold=0.9, max_ticks=8)
        caller.submit(asked)
        for _ in range(4):
            caller.step()
        caller.now = 10.0
        caller.step()
        last = caller.answers(asked)[-1]
        assert (last.link, last.stop_reason, last.ticks_used, last.answer_tick) == (1, StopReason.DEADLINE, 3, 2)
        assert (last.chain_end, last.text) == (ChainEnd.INTERRUPTED, "1 ")
        assert caller.events[asked][-1].texts == ["0 1 "]
        assert caller.engine.idle

    @pytest.mark.parametrize("end", ["deadline", "drain"])
    @pytest.mark.parametrize("ahead", [pytest.param(9, id="waiting"), pytest.param(1, id="parked")])
    def test_a_link_that_does_not_think_ends_without_an_answer(self, end, ahead):
        caller = Caller(num_slots=1, chain_ahead=ahead)
        asked = chained([SURE] * 3, deadline=10.0 if end == "deadline" else inf)
        caller.submit(asked)
        caller.step()
        caller.submit(request(UNSURE, priority=1, max_ticks=8))
        caller.step()
        assert caller.engine.scheduler.num_waiting == (ahead > 1)
        if end == "deadline":
            caller.now = 10.0
            caller.step()
        else:
            caller.end_all()
        answer, summary = caller.events[asked]
        assert (answer.link, answer.chain_end) == (0, ChainEnd.GOES_ON)
        assert summary == Summary([False], [0], 1, 0.0, caller.now, seed=7, texts=["0 "])

    @pytest.mark.parametrize("end", ["deadline", "drain"])
    def test_a_chain_that_never_ticked_fails(self, end):
        caller = Caller(num_slots=1)
        caller.submit(request(UNSURE, priority=1, max_ticks=8))
        asked = chained([SURE] * 2, deadline=10.0 if end == "deadline" else inf)
        caller.submit(asked)
        caller.step()
        if end == "deadline":
            caller.now = 10.0
            caller.step()
        else:
            caller.end_all()
        (failure,) = caller.events[asked]
        assert isinstance(failure, Failure)
        assert isinstance(failure.error, DeadlineExceeded if end == "deadline" else Unavailable)

    @pytest.mark.parametrize("ahead", [pytest.param(9, id="thinking"), pytest.param(1, id="parked")])
    def test_cancelling_frees_all_that_a_chain_holds(self, ahead):
        caller = Caller(num_slots=2, chain_ahead=ahead)
        asked = chained([SURE] * 9, [SURE] * 9)
        caller.submit(asked)
        caller.step()
        caller.step()
        report = StepReport()
        caller.engine.cancel(asked, report)
        assert {end.thought.row for end in report.ended} == {0, 1}
        assert caller.engine.idle
        assert caller.engine.scheduler.num_running == 0
        caller.engine.read(asked, 2)
        assert caller.engine.idle, "what is read of a chain that is gone changes nothing"


class Wrong:
    """Gives what the program cannot take."""

    def __init__(self, inputs: Mapping[str, Array]) -> None:
        self.inputs = inputs

    def follow(self, _: Answer) -> Mapping[str, Array] | None:
        return self.inputs

    def finish(self, _: Summary) -> None:
        raise AssertionError("never gets there")


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(ScriptedChain([SURE], [], fails="follow"), id="follow raises"),
        pytest.param(ScriptedChain([SURE], [], fails="finish"), id="finish raises"),
        pytest.param(Wrong({}), id="no inputs"),
        pytest.param(Wrong(SURE | {"more": np.zeros((1, 1))}), id="an input too many"),
        pytest.param(Wrong(SURE | {"done": np.zeros((2, TICKS), np.float32)}), id="two rows"),
        pytest.param(Wrong(SURE | {"done": np.zeros((1, TICKS + 1), np.float32)}), id="another size"),
        pytest.param(Wrong(SURE | {"done": np.zeros((1, TICKS), np.float64)}), id="another datatype"),
    ],
)
def test_a_broken_chain_fails_its_request_and_no_other(broken: Chain):
    caller = Caller(num_slots=3)
    held, other = request(SURE, UNSURE, chain=broken, **STOP), chained([SURE, SURE])
    caller.submit(held, other)
    caller.think()
    *_, last = caller.events[held]
    assert isinstance(last, Failure)
    assert isinstance(last.error, BackendFailed)
    assert sum(isinstance(event, Summary | Failure) for event in caller.events[held]) == 1
    assert [type(event) for event in caller.events[other]] == [Answer, Answer, Summary]
    assert caller.engine.scheduler.num_running == 0


class TestReading:
    """A chain goes no further ahead of its reader than it may."""

    def test_a_reader_that_never_reads_holds_no_slot_and_a_bounded_number_of_answers(self):
        caller = Caller(num_slots=2, chain_ahead=3)
        asked = chained([SURE] * 50)
        caller.submit(asked)
        caller.think(read=False)
        assert len(caller.answers(asked)) == 3
        assert caller.engine.idle
        assert caller.engine.rest_seconds == inf, "nothing will need doing"
        assert caller.engine.scheduler.num_running == caller.engine.scheduler.num_waiting == 0
        other = request(SURE, SURE, **STOP)
        caller.submit(other)
        assert caller.think(read=False) == 1, "both slots are free for others"
        caller.read(asked)
        assert caller.engine.scheduler.num_waiting == 1
        caller.think()
        assert [answer.link for answer in caller.answers(asked)] == list(range(50))
        assert isinstance(caller.events[asked][-1], Summary)

    def test_rows_of_one_request_are_parked_together_and_others_go_on(self):
        caller = Caller(num_slots=8, chain_ahead=4)
        slow_reader, reader = chained(*[[SURE] * 20] * 3), chained([SURE] * 20)
        caller.submit(slow_reader, reader)
        while not caller.engine.idle:
            caller.step()
            caller.read(reader)
        assert isinstance(caller.events[reader][-1], Summary)
        assert 4 <= len(caller.answers(slow_reader)) < 4 + 3, "each row may have one thought on its way"
        caller.think()
        links = [(answer.row, answer.link) for answer in caller.answers(slow_reader)]
        for row in range(3):
            assert [link for mine, link in links if mine == row] == list(range(20))

    def test_reading_a_little_lets_a_chain_go_on_a_little(self):
        caller = Caller(chain_ahead=4)
        asked = chained([SURE] * 50)
        caller.submit(asked)
        caller.think(read=False)
        caller.engine.read(asked, 1)
        caller.think(read=False)
        assert len(caller.answers(asked)) == 5

    def test_a_parked_link_has_no_step_to_run_until_its_deadline(self):
        caller = Caller(chain_ahead=1)
        asked = chained([SURE] * 5, deadline=10.0)
        caller.submit(asked)
        caller.think(read=False)
        caller.now = 4.0
        assert caller.engine.idle
        assert caller.engine.rest_seconds == 6.0
        caller.now = 10.0
        assert not caller.engine.idle
        assert caller.think(read=False) == 1
        assert isinstance(caller.events[asked][-1], Summary)

    def test_a_chain_waits_for_a_slot_from_when_it_could_go_on(self):
        caller = Caller(chain_ahead=1)
        asked = chained([SURE] * 3)
        caller.submit(asked)
        caller.step()
        caller.now = 50.0
        caller.read(asked)
        caller.now = 52.0
        (thought,) = caller.step().admitted
        assert (thought.link, thought.queue_seconds) == (1, 2.0)
        caller.think()
        summary = caller.events[asked][-1]
        assert (summary.queue_seconds, summary.think_seconds) == (0.0, 52.0), "the first link did not wait"


class Drawn:
    """Each next thought is drawn from the answer before and by seed, row and link."""

    def __init__(self, links: int, seed: int) -> None:
        self.links, self.seed = links, seed

    def follow(self, answer: Answer) -> Mapping[str, Array] | None:
        if answer.link + 1 == self.links:
            return None
        numbers = Chance(self.seed).uniform(answer.row, answer.link, 2 * TICKS)
        best = int(answer.prediction.argmax())
        classes = ((numbers[TICKS:] * 3).astype(int) + best) % 3
        return script((numbers[:TICKS] / (1 + 0.1 * best)).tolist(), classes=classes.tolist())

    def finish(self, summary: Summary) -> None:
        summary.seed = self.seed


def drawn(index: int, seed: int) -> Request:
    """One to three rows, two to six links."""
    stop = {"certainty_threshold": 0.8, "patience": 1 + index % 2, "every": 1}
    return request(*[UNSURE] * (1 + index % 3), chain=Drawn(2 + index, 100 * seed + index), **stop)


@cache
def alone(seed: int) -> list[dict[int, list[tuple[object, ...]]]]:
    """Each of five requests in an engine of its own."""
    found = []
    for index in range(5):
        caller, asked = Caller(1), drawn(index, seed)
        caller.submit(asked)
        caller.think()
        found.append(marks(caller.events[asked]))
    return found


@pytest.mark.parametrize(
    ("num_slots", "chain_ahead"),
    [
        pytest.param(1, 32, id="one slot"),
        pytest.param(2, 32, id="two slots"),
        pytest.param(3, 1, id="three slots, parked after each answer"),
        pytest.param(7, 32, id="seven slots"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_chain_is_the_same_alone_or_in_company(num_slots, chain_ahead, seed):
    caller, together = Caller(num_slots, chain_ahead=chain_ahead), [drawn(index, seed) for index in range(5)]
    for place in np.random.default_rng(seed).permutation(5):
        caller.submit(together[place])
        caller.step()
    caller.think()
    for mine, asked in zip(alone(seed), together, strict=True):
        assert marks(caller.events[asked]) == mine


def marks(events: list[Event]) -> dict[int, list[tuple[object, ...]]]:
    """Every number of each row's ticks and answers, in order."""
    found: dict[int, list[tuple[object, ...]]] = {}
    for event in events:
        if isinstance(event, Tick):
            found.setdefault(event.row, []).append((event.link, event.tick, event.certainty))
        elif isinstance(event, Answer):
            mark = (event.link, event.stop_reason, event.answer_tick, event.prediction.tobytes(), event.chain_end)
            found.setdefault(event.row, []).append(mark)
    return found


@pytest.mark.parametrize(
    ("reason", "before", "given", "after"),
    [
        pytest.param(StopReason.CERTAIN, 0, SURE, 0, id="goes on"),
        pytest.param(StopReason.CERTAIN, 0, None, ChainEnd.MAX_LINKS, id="ends without a word"),
        pytest.param(StopReason.TICK_BUDGET, ChainEnd.END_TOKEN, None, ChainEnd.END_TOKEN, id="says why"),
        pytest.param(StopReason.CERTAIN, ChainEnd.STOP_TEXT, SURE, ChainEnd.STOP_TEXT, id="an end is an end"),
        pytest.param(StopReason.DEADLINE, 0, SURE, ChainEnd.INTERRUPTED, id="no time is left"),
        pytest.param(StopReason.DIVERGED, 0, SURE, ChainEnd.INTERRUPTED, id="diverged"),
        pytest.param(StopReason.DEADLINE, ChainEnd.MAX_LINKS, None, ChainEnd.MAX_LINKS, id="it was the last anyway"),
    ],
)
def test_why_a_chain_ends(reason, before, given, after):
    class Says:
        def follow(self, answer: Answer) -> Mapping[str, Array] | None:
            answer.chain_end = before or answer.chain_end
            return given

        def finish(self, summary: Summary) -> None:
            del summary

    answer = Answer(row=0, ticks_used=1, answer_tick=1, certainty=0.5, stop_reason=reason, abstained=False)
    following = next_link(Says(), answer, ScriptedBackend(1).program.inputs)
    assert answer.chain_end == after
    assert (following is None) == (after != ChainEnd.GOES_ON)


MOVES = ["submit", "step", "step", "step", "read", "cancel", "wait"]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 99))),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_whatever_happens_every_chain_has_one_end_and_its_links_in_order(moves, num_slots, chain_ahead):
    caller = Caller(num_slots, chain_ahead=chain_ahead)
    random, cancelled, asked = np.random.default_rng(len(moves)), set(), []
    for move, number in moves:
        if move == "submit":
            rows = [
                [(SURE, SLOW, UNSURE)[k] for k in random.integers(0, 3, 1 + number % 5)] for _ in range(1 + number % 3)
            ]
            asked.append(chained(*rows, deadline=caller.now + number if number % 2 else inf))
            caller.submit(asked[-1])
        elif move == "step" and not caller.engine.idle:
            caller.step()
        elif move == "read" and asked:
            caller.read(asked[number % len(asked)])
        elif move == "cancel" and asked:
            cancelled.add(asked[number % len(asked)])
            caller.engine.cancel(asked[number % len(asked)], StepReport())
        elif move == "wait":
            caller.now += number
    caller.end_all()
    assert caller.engine.idle
    assert caller.engine.scheduler.num_running == 0
    assert not caller.engine.num_requests
    for each in asked:
        ends = [event for event in caller.events[each] if isinstance(event, Summary | Failure)]
        assert len(ends) == 1 or (each in cancelled and not ends)
        for row in range(each.rows):
            mine = [answer for answer in caller.answers(each) if answer.row == row]
            assert [answer.link for answer in mine] == list(range(len(mine)))
            assert not any(answer.chain_end for answer in mine[:-1])
