"""How an energy threshold is chosen beside certainty's, and what the card and the manifest say of energy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import tiny_model

from ctm.checkpoint import Checkpoint, write_checkpoint
from ctm.energy import StopRule
from ctm.judge import Judged
from export.card_energy import render_energy
from export.cli import main
from export.energy import choose_energy, choose_rule, energy_margin, measure_energy
from export.quality import measure_quality
from serving.bundle import Bundle, load_bundle

HIGH = 9.0


def _judged(certainty: list[list[float]], correct: list[list[float]]) -> Judged:
    certainty_NT, correct_NT = np.array(certainty, np.float32), np.array(correct, np.float32)
    return Judged(correct_NT, certainty_NT, certainty_NT, whole=correct_NT, unpadded=correct_NT)


# Four rows of three ticks, ever more certain and ever lower in energy. At the first tick one is right, at the second
# three, at the third all.
RISING = _judged([[0.55, 0.75, 0.92]] * 4, [[1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1]])
FALLING = np.array([[3.0, 2.0, 1.0]] * 4, np.float32)


@pytest.mark.parametrize(
    ("loss", "certainty", "threshold"),
    [
        pytest.param(0.0, 0.9, 1.0, id="no loss: the third tick"),
        pytest.param(0.25, 0.9, 2.0, id="a quarter: the second tick is enough"),
        pytest.param(0.75, 0.9, 3.0, id="three quarters: the first tick"),
        pytest.param(0.0, 0.7, 1.0, id="certainty alone loses more already: energy adds nothing to it"),
        pytest.param(0.0, 0.5, 1.0, id="and if certainty stops at once"),
    ],
)
def test_the_largest_threshold_within_the_allowed_loss_is_chosen(
    loss: float, certainty: float, threshold: float
) -> None:
    assert choose_energy(RISING, FALLING, loss, certainty) == threshold


def test_a_threshold_that_costs_too_much_beside_certainty_is_not_chosen() -> None:
    # Energy alone stops two of four rows too early, certainty alone the other two; half may be lost, not all.
    judged = _judged([[0.9, 0.95]] * 2 + [[0.1, 0.95]] * 2, [[0, 1]] * 4)
    energy_NT = np.array([[HIGH, 1.0]] * 2 + [[2.0, 1.0]] * 2, np.float32)
    assert choose_energy(judged, energy_NT, 0.5, certainty=1.0) == 2.0
    assert choose_energy(judged, energy_NT, 0.5, certainty=0.9) == 1.0


def test_where_low_energy_means_nothing_none_is_chosen() -> None:
    judged = _judged([[0.1, 0.9]], [[0, 1]])
    assert choose_energy(judged, np.array([[1.0, 2.0]], np.float32), 0.0, certainty=1.0) is None


@pytest.mark.parametrize(
    ("certainty", "energies", "may_omit", "rule", "words"),
    [
        pytest.param(
            0.7, FALLING, True, StopRule(certainty=0.7), "here certainty alone", id="energy saves nothing beside it"
        ),
        pytest.param(
            0.9, FALLING, True, StopRule(energy=2.0), "certainty alone 3.00, energy alone 2.00", id="energy alone saves"
        ),
        pytest.param(
            0.9, FALLING, False, StopRule(certainty=0.9, energy=2.0), "here either of the two", id="certainty was given"
        ),
        pytest.param(
            0.9, -FALLING, True, StopRule(certainty=0.9), "certainty alone 3.00.", id="no energy threshold will do"
        ),
    ],
)
def test_energy_ships_where_it_saves_ticks(
    certainty: float, energies: np.ndarray, may_omit: bool, rule: StopRule, words: str
) -> None:
    # A quarter may be lost: the second tick is enough.
    chosen, sentence = choose_rule(RISING, energies, 0.25, certainty, may_omit=may_omit)
    assert chosen == rule
    assert words in sentence


def test_quality_says_what_energy_tells_and_what_it_buys() -> None:
    energy = measure_energy(RISING, FALLING, StopRule(certainty=0.9, energy=2.0), 4.0, "Because.")
    assert energy.energy == (3.0, 2.0, 1.0)
    assert energy.separation[:2] == (0.5, 0.5), "all rows have the same energy"
    assert math.isnan(energy.separation[2]), "all are right"
    # Energy over margin says 25, 50 and 75 % are right, and 25, 75 and 100 % are.
    assert energy.calibration_error == pytest.approx((0.0, 0.25, 0.25))
    assert [(point.rule.energy, point.mean_ticks, point.accuracy) for point in energy.thresholds] == [
        (1.0, 3.0, 1.0),
        (2.0, 2.0, 0.75),
        (3.0, 1.0, 0.25),
    ]
    assert [point.rule.delta for point in energy.deltas] == [1.0]
    assert (energy.shipped.mean_ticks, energy.shipped.share_energy, energy.threshold) == (2.0, 1.0, 2.0)
    assert measure_energy(RISING, FALLING, StopRule(), None, "").calibration_error == ()


def test_the_card_says_which_rules_ship_and_what_they_do_together() -> None:
    rule = StopRule(certainty=0.9, energy=2.0, delta=0.01)
    text = render_energy(
        measure_energy(RISING, FALLING, rule, 4.0, "Because."), measure_quality(RISING, 0.9, "").shipped
    )
    for words in (
        "certainty reaches 0.9 or when its energy is 2 or less or when its energy changes by less than 0.01",
        "**75.00%** are right after **2.00 ticks**",
        "by certainty 0.9 alone 100.00% after 3.00",
        "Because.",
        "| energy ≤ 2 | 75.00% | 2.00 | 0.00 | 100.0% |",
        "| 3 | 1.000 | – | – | 0.250 |",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("config", "margin"),
    [
        pytest.param({"run": {"loss": {"energy_margin": 5}}}, 5.0, id="said"),
        pytest.param({"run": {"loss": {"energy_margin": 0.0}}}, None, id="none to divide by"),
        pytest.param({"run": {"loss": {"energy_margin": "wide"}}}, None, id="text"),
        pytest.param({"run": {"loss": None}}, None, id="null"),
        pytest.param({}, None, id="not said"),
    ],
)
def test_the_margin_is_read_where_it_is_said(config: dict[str, Any], margin: float | None) -> None:
    assert energy_margin(config) == margin


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of an untrained model of digits with an energy head, exported by the command."""
    folder = tmp_path_factory.mktemp("energy")
    model = tiny_model(
        ticks=4,
        backbone="digit",
        in_channels=1,
        input_shape=(1, 8, 8),
        input_mean=(0.3,),
        input_std=(0.4,),
        energy_hidden=4,
    )
    config = {
        "family": "ctm",
        "model": model.config.to_dict(),
        "task": {"name": "digits", "input_name": "image", "labels": list("0123456789"), "prediction_shape": [10]},
        "run": {"loss": {"energy_margin": 4.0}},
    }
    write_checkpoint(folder / "checkpoint", Checkpoint(weights=model.state_dict(), config=config))
    arguments = [str(folder / "checkpoint"), "--store", str(folder / "store"), "--agreement-rows", "32"]
    rules = ["--threshold", "0.9", "--energy-delta", "0.125"]
    assert main([*arguments, "--max-accuracy-loss", "100", *rules]) == 0
    return load_bundle(folder / "store" / "digits" / "1")


def test_a_model_with_an_energy_head_ships_what_was_chosen(published: Bundle) -> None:
    energy, stop = published.manifest.quality.energy, published.manifest.stop
    assert stop.HasField("energy_threshold"), "whatever it costs is allowed"
    shipped = energy.shipped
    assert shipped.energy_threshold == pytest.approx(stop.energy_threshold)
    assert shipped.certainty_threshold == pytest.approx(stop.certainty_threshold)
    assert shipped.energy_delta == stop.energy_delta == 0.125
    assert (published.stop.energy_threshold, published.stop.energy_delta) == (stop.energy_threshold, 0.125)
    assert len(energy.energy) == len(energy.separation) == len(energy.calibration_error) == 4
    assert energy.margin == 4.0
    assert all(point.HasField("energy_threshold") for point in energy.threshold_frontier)
    assert not any(point.HasField("certainty_threshold") for point in energy.threshold_frontier)
    assert all(point.HasField("energy_delta") for point in energy.delta_frontier)
    ticks = [point.mean_ticks for point in energy.threshold_frontier]
    assert ticks == sorted(ticks, reverse=True), "a higher threshold stops sooner"


def test_its_card_has_a_section_and_two_plots_more(published: Bundle) -> None:
    card = (Path(published.path) / "README.md").read_text()
    assert "## Energy" in card
    assert "or its energy falls to" in card
    for name in ("energy_frontier.png", "energy_by_tick.png"):
        assert f"]({name})" in card
        assert 1_000 < (Path(published.path) / name).stat().st_size < 60_000
