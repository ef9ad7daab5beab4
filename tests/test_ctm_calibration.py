"""Calibration error and separation on cases that can be worked out by hand."""

import numpy as np
import pytest

from ctm.calibration import calibration_error, confidence_of_energy, separation


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


@pytest.mark.parametrize(
    ("energy", "correct", "area"),
    [
        pytest.param([1, 2, 3, 4], [1, 1, 0, 0], 1.0, id="all right ones lower"),
        pytest.param([1, 2, 3, 4], [0, 0, 1, 1], 0.0, id="all right ones higher"),
        pytest.param([1, 1, 1, 1], [1, 0, 1, 0], 0.5, id="equal ones count half"),
        pytest.param([1, 3, 2, 4], [1, 1, 0, 0], 0.75, id="three of four pairs"),
        pytest.param([1, 2, 3, 4], [1, 1, 1, 1], np.nan, id="nothing to tell apart"),
    ],
)
def test_separation_counts_pairs(energy: list[float], correct: list[int], area: float) -> None:
    found = separation(np.array(energy, np.float32)[:, None], np.array(correct, np.float32)[:, None])
    np.testing.assert_allclose(found, [area])


def test_energy_over_the_margin_is_the_probability_of_being_wrong() -> None:
    # What the loss leaves at least: of four rows that look alike three are right, and all get one energy.
    margin, energies = 8.0, np.linspace(0.0, 8.0, 801)
    cost = 0.75 * energies**2 + 0.25 * (margin - energies) ** 2
    best = energies[cost.argmin()]
    assert confidence_of_energy(np.array([[best, -1.0, 9.0]]), margin) == pytest.approx(np.array([[0.75, 1.0, 0.0]]))
