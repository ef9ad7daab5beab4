"""Early stopping on recorded certainties: who stops when, what answers, and what that costs."""

import numpy as np
import pytest

from ctm.frontier import FrontierPoint, frontier, most_certain_accuracy, stopping


@pytest.mark.parametrize(
    ("certainties", "threshold", "used", "answer"),
    [
        pytest.param([0.95, 0.1, 0.2], 0.9, 1, 0, id="certain at once"),
        pytest.param([0.1, 0.5, 0.9], 0.9, 3, 2, id="threshold is inclusive"),
        pytest.param([0.1, 0.9, 0.99], 0.9, 2, 1, id="later ticks are never run"),
        pytest.param([0.1, 0.7, 0.3], 0.9, 3, 1, id="never certain: the most certain tick answers"),
        pytest.param([0.4, 0.7, 0.7], 0.9, 3, 1, id="the earliest of equals answers"),
        pytest.param([0.1, 1.0000001, 0.2], 1.0, 2, 1, id="rounding above 1 is clamped"),
        pytest.param([-1e-7, -0.5, 0.0], 0.9, 3, 0, id="rounding below 0 is clamped"),
        pytest.param([0.0, 0.3, 0.2], 0.0, 1, 0, id="threshold 0 takes the first tick"),
    ],
)
def test_when_a_thought_stops_and_which_tick_answers(
    certainties: list[float], threshold: float, used: int, answer: int
) -> None:
    used_N, answer_N = stopping(np.array([certainties]), threshold)
    assert (used_N.tolist(), answer_N.tolist()) == ([used], [answer])


def test_a_frontier_counts_accuracy_ticks_and_the_certain() -> None:
    certainty = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.1], [0.1, 0.2]], dtype=np.float32)
    correct = np.array([[1, 0], [0, 1], [0, 1], [1, 1]], dtype=np.float32)
    (point,) = frontier(certainty, correct, thresholds=[0.8])
    assert point == FrontierPoint(
        threshold=0.8,
        accuracy=0.75,
        mean_ticks=1.75,
        ticks_deviation=pytest.approx(np.std([1, 2, 2, 2])),
        share_certain=0.5,
    )


def test_the_most_certain_of_all_ticks_answers_however_certain_a_tick_before_was() -> None:
    certainty = np.array([[1.0, 0.5, 0.2], [0.9, 0.99, 0.1], [0.3, 0.3, 0.3], [0.2, 0.1, 0.4]], dtype=np.float32)
    correct = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=np.float32)
    assert most_certain_accuracy(certainty, correct) == 0.75
