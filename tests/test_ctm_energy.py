"""Stopping by energy on recorded thoughts: as the server's slots do it, row by row, for any rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ctm.energy import EnergyPoint, StopRule, delta_candidates, energy_candidates, energy_point, stop
from serving.request import AnswerRule, Request, StopPolicy, StopReason, StreamPolicy
from serving.slots import SlotTable

CERTAINTY = [0.2, 0.5, 0.4, 0.9]
ENERGY = [5.0, 3.0, 2.0, 1.99]


@pytest.mark.parametrize(
    ("rule", "used", "answer", "why"),
    [
        pytest.param(StopRule(), 4, 3, "budget", id="no rule: the most certain tick answers"),
        pytest.param(StopRule(energy=3.0), 2, 1, "energy", id="a threshold is inclusive"),
        pytest.param(StopRule(energy=2.5), 3, 2, "energy", id="the stopping tick answers, not the most certain"),
        pytest.param(StopRule(energy=1.0), 4, 3, "budget", id="never low enough"),
        pytest.param(StopRule(energy=5.0, min_ticks=3), 3, 2, "energy", id="not before min_ticks"),
        pytest.param(StopRule(delta=0.1), 4, 3, "energy", id="settled"),
        pytest.param(StopRule(delta=100.0), 2, 1, "energy", id="the first tick has changed from nothing"),
        pytest.param(StopRule(delta=100.0, min_ticks=3), 3, 2, "energy", id="settled before min_ticks, and still"),
        pytest.param(StopRule(certainty=0.4), 2, 1, "certainty", id="certainty alone"),
        pytest.param(StopRule(certainty=0.4, energy=3.0), 2, 1, "certainty", id="at one tick certainty comes first"),
        pytest.param(StopRule(certainty=0.9, energy=2.5), 3, 2, "energy", id="whichever comes first"),
    ],
)
def test_when_a_thought_stops_and_which_tick_answers(rule: StopRule, used: int, answer: int, why: str) -> None:
    stopped = stop(np.array([CERTAINTY], np.float32), np.array([ENERGY], np.float32), rule)
    reason = "certainty" if stopped.by_certainty[0] else "energy" if stopped.by_energy[0] else "budget"
    assert (stopped.used[0], stopped.answer[0], reason) == (used, answer, why)


# Few values, so that equal numbers and thresholds that are met exactly are common; 0.1 is no float32.
NUMBERS = st.sampled_from([-0.5, 0.0, 0.1, 0.2, 0.3, 0.7, 1.0, 1.5])
RULES = st.builds(
    StopRule,
    certainty=st.sampled_from([0.0, 0.1, 0.3, 1.0, float("inf")]),
    energy=st.sampled_from([float("-inf"), -0.5, 0.1, 0.3, 1.0]),
    delta=st.sampled_from([0.0, 0.1, 0.15, 0.5]),
    min_ticks=st.integers(1, 4),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    certainty_NT=arrays(np.float32, (3, 5), elements=NUMBERS.map(np.float32)),
    energy_NT=arrays(np.float32, (3, 5), elements=NUMBERS.map(np.float32)),
    rule=RULES,
)
def test_recorded_thoughts_stop_as_the_servers_slots_do(
    certainty_NT: np.ndarray, energy_NT: np.ndarray, rule: StopRule
) -> None:
    rows, ticks = certainty_NT.shape
    policy = StopPolicy(
        max_ticks=ticks,
        min_ticks=rule.min_ticks,
        certainty_threshold=rule.certainty,
        energy_threshold=rule.energy,
        energy_delta=rule.delta,
    )
    stopped = stop(certainty_NT, energy_NT, rule)
    for row in range(rows):
        used, answer, reason = _in_a_slot(policy, certainty_NT[row], energy_NT[row])
        assert (stopped.used[row], stopped.answer[row] + 1) == (used, answer)
        assert stopped.by_certainty[row] == (reason == StopReason.CERTAIN)
        assert stopped.by_energy[row] == (reason == StopReason.ENERGY)


def _in_a_slot(policy: StopPolicy, certainty_T: np.ndarray, energy_T: np.ndarray) -> tuple[int, int, int]:
    """Ticks used, answering tick and stop reason of one thought in the server's table."""
    request = Request(
        request_id="",
        inputs={},
        rows=1,
        stop=policy,
        stream=StreamPolicy(every=0),
        answer_rule=AnswerRule.MOST_CERTAIN,
    )
    table = SlotTable(num_slots=1, positions=1)
    table.admit(0, request)
    for certainty, energy in zip(certainty_T, energy_T, strict=True):
        reason = table.judge(np.array([certainty]), energy_n=np.array([energy])).reasons[0]
        if reason:
            break
    standing = table.standings([0])[0]
    return standing.ticks, standing.answer_tick, int(reason)


def test_a_point_counts_accuracy_ticks_and_who_stopped_what() -> None:
    certainty_NT = np.array([[0.9, 0.1], [0.2, 0.3], [0.3, 0.1], [0.1, 0.2]], np.float32)
    energy_NT = np.array([[9.0, 9.0], [1.0, 9.0], [9.0, 1.0], [9.0, 9.0]], np.float32)
    correct_NT = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    rule = StopRule(certainty=0.8, energy=2.0)
    assert energy_point(certainty_NT, energy_NT, correct_NT, rule) == EnergyPoint(
        rule=rule,
        accuracy=0.75,
        mean_ticks=1.5,
        ticks_deviation=0.5,
        share_energy=0.5,
        share_certain=0.25,
    )


def test_candidates_are_values_that_were_met_in_three_digits() -> None:
    energy_NT = np.array([[1.23456, 1.0, 1.0], [7.0, 3.0, 1.5]], np.float32)
    assert energy_candidates(energy_NT, count=5) == (1.0, 1.23, 1.5, 3.0, 7.0)
    assert delta_candidates(energy_NT, count=3) == (0.235, 1.5, 4.0)
    assert energy_candidates(np.full((2, 2), np.nan)) == ()
