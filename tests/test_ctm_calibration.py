"""The expected calibration error on cases that can be worked out by hand."""

import numpy as np
import pytest

from ctm.calibration import calibration_error


@pytest.mark.parametrize(
    ("confidence", "correct", "error"),
    [
        pytest.param([1.0, 1.0], [1, 1], 0.0, id="sure and right"),
        pytest.param([1.0, 1.0], [0, 0], 1.0, id="sure and wrong"),
        pytest.param([0.75, 0.75, 0.75, 0.75], [1, 1, 1, 0], 0.0, id="as right as it says"),
        pytest.param([0.9, 0.9, 0.3, 0.3], [1, 0, 0, 0], 0.35, id="bins count by their rows"),
    ],
)
def test_calibration_error(confidence: list[float], correct: list[int], error: float) -> None:
    at_one_tick = calibration_error(np.array(confidence)[:, None], np.array(correct, dtype=float)[:, None])
    assert at_one_tick == pytest.approx([error])


def test_each_tick_has_its_own_error() -> None:
    confidence = np.array([[1.0, 1.0], [1.0, 1.0]])
    assert calibration_error(confidence, np.array([[1.0, 0.0], [1.0, 0.0]])).tolist() == [0.0, 1.0]
