"""Losses over ticks: the recorded values of the reference, and small cases worked out by hand."""

import math

import golden
import numpy as np
import pytest
import torch
from torch import Tensor

from ctm.certainty import certainty, most_certain
from ctm.losses import energy_loss, image_loss, maze_horizon, maze_loss, parity_loss

OURS = {"image_classification_loss": image_loss, "qamnist_loss": image_loss, "parity_loss": parity_loss,
        "maze_loss": maze_loss}  # fmt: skip
ELSEWHERE = {"sort_loss": "later work", "compute_decay": "later work", None: "the schedule is training's"}


def cases() -> list:
    """Every case of every recording of losses, by the function it names; one skipped without a folder."""
    found = []
    for parameter in golden.names(lambda meta: "cases" in meta):
        if not golden.FOLDER:
            return [pytest.param("", "", marks=parameter.marks, id="none")]
        (name,) = parameter.values
        for case, facts in golden.load(name).meta["cases"].items():
            function = facts.get("fn", " ").split()[0] if "fn" in facts else None
            marks = pytest.mark.skip(reason=f"{case}: {ELSEWHERE[function]}") if function in ELSEWHERE else ()
            found.append(pytest.param(name, case, marks=marks, id=case))
    return found


def ticks_second(recorded: np.ndarray) -> Tensor:
    """[B, ..., T] as recorded to [B, T, C] as we have it."""
    return torch.from_numpy(np.moveaxis(recorded, -1, 1)).flatten(2).clone().requires_grad_()


def as_recorded(ours_BTC: Tensor, recorded: np.ndarray) -> np.ndarray:
    shape = (recorded.shape[0], recorded.shape[-1], *recorded.shape[1:-1])
    return np.moveaxis(ours_BTC.numpy().reshape(shape), 1, -1)


@pytest.mark.parametrize(("name", "case"), cases())
def test_recorded_losses_and_their_gradients_agree(name, case):
    recording = golden.load(name)
    facts = recording.meta["cases"][case]
    given = {key.split("/")[1]: value for key, value in recording.group(case).items() if key.startswith("in/")}
    expected = {key.split("/")[1]: value for key, value in recording.group(case).items() if key.startswith("out/")}
    function = facts["fn"].split()[0]
    if function == "compute_normalized_entropy":
        return check_entropy(given["logits"], expected)
    if function == "EnergyContrastiveLoss":
        return check_energy(given, expected, margin=facts["margin"], scale=facts["energy_scale"])
    assert function in OURS, f"{case}: {function} is recorded, but not compared"
    predictions, targets = ticks_second(given["predictions"]), torch.from_numpy(given["targets"])
    certainties = torch.from_numpy(given["certainties"][:, 1])
    settings = {"use_most_certain": facts["use_most_certain"]}
    if function == "maze_loss":
        settings["lookahead"] = facts["cirriculum_lookahead"]
        moves = torch.from_numpy(np.moveaxis(given["predictions"], -1, 1)).argmax(-1)
        np.testing.assert_array_equal(maze_horizon(moves, targets, settings["lookahead"]), expected["upto_where"])
    loss = OURS[function](predictions, certainties, targets, **settings)
    loss.value.backward()
    np.testing.assert_allclose(loss.value.item(), expected["loss"], rtol=2e-6)
    # The last tick is recorded as -1.
    np.testing.assert_array_equal(loss.tick, expected["where"] % predictions.shape[1])
    if "grad_predictions" in expected:
        gradient = as_recorded(predictions.grad, expected["grad_predictions"])
        np.testing.assert_allclose(gradient, expected["grad_predictions"], rtol=1e-4, atol=1e-7)


def check_entropy(logits: np.ndarray, expected: dict[str, np.ndarray]) -> None:
    sure = certainty(torch.from_numpy(logits).flatten(1), logits.shape[1:])
    np.testing.assert_allclose(1 - sure, expected["mean"], rtol=2e-6, atol=1e-6)
    if "none" in expected:
        each = certainty(torch.from_numpy(logits), logits.shape[-1:])
        np.testing.assert_allclose(1 - each, expected["none"], rtol=2e-6, atol=1e-6)


def check_energy(given: dict[str, np.ndarray], expected: dict[str, np.ndarray], *, margin: float, scale: float) -> None:
    targets = torch.from_numpy(given["targets"])
    predictions, energies = ticks_second(given["logits"]), ticks_second(given["energies"])
    loss = energy_loss(predictions, energies.squeeze(-1), targets, margin=margin, scale=scale)
    loss.value.backward()
    np.testing.assert_allclose(loss.value.item(), expected["loss"], rtol=2e-6)
    for ours, recorded in ((predictions, "grad_logits"), (energies, "grad_energies")):
        gradient = as_recorded(ours.grad, expected[recorded])
        np.testing.assert_allclose(gradient, expected[recorded], rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        parts = [energy_loss(predictions, energies.squeeze(-1), targets, margin=margin, scale=s).value for s in (0, 1)]
    np.testing.assert_allclose(parts[0], expected["ce"], rtol=2e-6)
    np.testing.assert_allclose(parts[1] - parts[0], expected["energy"], rtol=1e-5)


def logits_of(chances: list[list[float]]) -> Tensor:
    """One row whose ticks give these chances, [1, T, K]."""
    return torch.tensor(chances).log()[None]


@pytest.mark.parametrize(
    ("certainties", "settings", "judged"),
    [
        pytest.param([0.1, 0.9, 0.2], {}, 1, id="the most certain tick"),
        pytest.param([0.9, 0.9, 0.2], {}, 0, id="the earliest of equals"),
        pytest.param([0.1, 0.9, 0.2], {"use_most_certain": False}, 2, id="the last tick"),
    ],
)
def test_the_best_tick_and_the_judged_tick_are_learned_from(certainties, settings, judged):
    chances = [[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]
    loss = image_loss(logits_of(chances), torch.tensor([certainties]), torch.tensor([0]), **settings)
    assert loss.tick.tolist() == [judged]
    expected = -(math.log(0.9) + math.log(chances[judged][0])) / 2
    torch.testing.assert_close(loss.value.item(), expected)


@pytest.mark.parametrize(
    ("moves", "lookahead", "horizon"),
    [
        pytest.param([[1, 1, 0, 0]], 5, 5, id="nothing right"),
        pytest.param([[0, 1, 2, 9]], 2, 4, id="three right: two before the last, two on"),
        pytest.param([[9, 1, 2, 3]], 2, 2, id="only a start counts"),
        pytest.param([[0, 9, 9, 9], [0, 1, 9, 9]], 1, 2, id="the tick that gets furthest"),
        pytest.param([[0, 1, 2, 3]], 20, 23, id="beyond the end"),
    ],
)
def test_how_far_a_maze_is_learned(moves, lookahead, horizon):
    assert maze_horizon(torch.tensor([moves]), torch.tensor([[0, 1, 2, 3]]), lookahead).tolist() == [horizon]


def test_only_the_moves_within_the_horizon_teach():
    predictions = torch.randn(2, 3, 4 * 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    horizon = maze_horizon(predictions.unflatten(-1, (4, 5)).argmax(-1), targets, 1)
    maze_loss(predictions, torch.rand(2, 3), targets, lookahead=1).value.backward()
    taught = predictions.grad.unflatten(-1, (4, 5)).abs().sum((1, 3)) > 0
    assert torch.equal(taught, torch.arange(4) < horizon[:, None])


def test_energy_falls_where_right_and_rises_to_the_margin_where_wrong():
    predictions = logits_of([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    energies = torch.tensor([[2.0, 3.0, 12.0]], requires_grad=True)
    loss = energy_loss(predictions, energies, torch.tensor([0]), margin=10, scale=1)
    loss.value.backward()
    assert energies.grad[0].sign().tolist() == [1, -1, 0]
    assert loss.tick.tolist() == [0]


@pytest.mark.parametrize(
    ("prediction", "shape", "expected"),
    [
        pytest.param([0.0, 0.0, 0.0, 0.0], (4,), 0.0, id="no idea"),
        pytest.param([200.0, 0.0, -200.0, 0.0], (4,), 1.0, id="no doubt, extreme logits"),
        pytest.param([0.0, 0.0, 100.0, -100.0], (2, 2), 0.5, id="sure at one of two positions"),
        pytest.param(
            [0.0, math.log(3)], (2,), 1 - (0.25 * math.log(4) + 0.75 * math.log(4 / 3)) / math.log(2), id="3 to 1"
        ),
    ],
)
def test_how_certain_a_prediction_is(prediction, shape, expected):
    sure = certainty(torch.tensor([[prediction] * 3]), shape)
    assert sure.shape == (1, 3)
    torch.testing.assert_close(sure, torch.full((1, 3), expected), rtol=0, atol=1e-6)


def test_the_most_certain_tick_is_the_earliest_of_equals():
    assert most_certain(torch.tensor([[0.2, 0.8, 0.8], [0.5, 0.5, 0.5]])).tolist() == [1, 0]
