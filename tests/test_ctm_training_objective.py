"""What is descended: the task's loss, with the energies' part where the model has an energy head."""

from typing import Literal

import pytest
import torch

from ctm.certainty import most_certain
from ctm.losses import energy_contrast, energy_loss, image_loss, maze_loss
from ctm.model import Thoughts
from ctm.training.config import LossConfig
from ctm.training.objective import objective

TARGETS = torch.tensor([2, 0, 1, 1])


def thoughts(*, energy: bool) -> Thoughts:
    """Four rows, three ticks, three classes, drawn with seed 0."""
    chance = torch.Generator().manual_seed(0)
    predictions, certainties = torch.randn(4, 3, 3, generator=chance), torch.rand(4, 3, generator=chance)
    energies = 20 * torch.rand(4, 3, generator=chance) if energy else None
    return Thoughts(
        predictions=predictions, certainties=certainties, energies=energies, sync_out=torch.zeros(4, 2), track=None
    )


@pytest.mark.parametrize("most_certain_too", [True, False])
def test_without_an_energy_head_the_tasks_loss_is_descended(most_certain_too: bool) -> None:
    given = thoughts(energy=False)
    loss = objective(given, TARGETS, "image", LossConfig(most_certain=most_certain_too))
    expected = image_loss(given.predictions, given.certainties, TARGETS, use_most_certain=most_certain_too)
    assert torch.equal(loss.value, expected.value)
    assert torch.equal(loss.tick, expected.tick)


def test_with_an_energy_head_cross_entropy_counts_once() -> None:
    given = thoughts(energy=True)
    assert given.energies is not None
    loss = objective(given, TARGETS, "image", LossConfig(energy_margin=5.0, energy_scale=0.5))
    alone = energy_loss(given.predictions, given.energies, TARGETS, margin=5.0, scale=0.5).value
    torch.testing.assert_close(loss.value, alone, rtol=0, atol=0)
    paper = image_loss(given.predictions, given.certainties, TARGETS).value
    cross_entropy = energy_loss(given.predictions, given.energies, TARGETS, margin=5.0, scale=0.0).value
    others = {"the paper's loss too": paper + alone, "the contrast beside it": paper + alone - cross_entropy}
    for name, other in others.items():
        assert not torch.isclose(loss.value, other, rtol=1e-3), f"seed 0 cannot tell the choice from {name}"
    assert torch.equal(loss.tick, most_certain(given.certainties)), "judged as an evaluation judges"


@pytest.mark.parametrize(
    ("beside", "every_tick", "paper"),
    [
        pytest.param("every_tick", 1.0, 0.0, id="as such models were published"),
        pytest.param("paper", 0.0, 1.0, id="by the paper's loss"),
        pytest.param("both", 1.0, 1.0, id="by both"),
    ],
)
def test_what_predictions_are_learned_by_beside_the_energies(
    beside: Literal["every_tick", "paper", "both"], every_tick: float, paper: float
) -> None:
    given = thoughts(energy=True)
    assert given.energies is not None
    energies = given.predictions, given.energies, TARGETS
    parts = {
        "cross-entropy of every tick": every_tick * energy_loss(*energies, scale=0.0).value,
        "the paper's": paper * image_loss(given.predictions, given.certainties, TARGETS).value,
        "contrast": 0.5 * energy_contrast(*energies, margin=5.0),
    }
    loss = objective(given, TARGETS, "image", LossConfig(energy_beside=beside, energy_margin=5.0, energy_scale=0.5))
    torch.testing.assert_close(loss.value, torch.stack(list(parts.values())).sum())
    assert torch.equal(loss.tick, most_certain(given.certainties))


@pytest.mark.parametrize("lookahead", [1, 2, 4])
def test_a_route_is_learned_as_far_ahead_as_the_configuration_says(lookahead: int) -> None:
    chance = torch.Generator().manual_seed(3)
    predictions, certainties = torch.randn(4, 3, 4 * 5, generator=chance), torch.rand(4, 3, generator=chance)
    moves = torch.randint(5, (4, 4), generator=chance)
    given = Thoughts(
        predictions=predictions, certainties=certainties, energies=None, sync_out=torch.zeros(4, 2), track=None
    )
    loss = objective(given, moves, "maze", LossConfig(lookahead=lookahead))
    assert torch.equal(loss.value, maze_loss(predictions, certainties, moves, lookahead=lookahead).value)
    others = {
        maze_loss(predictions, certainties, moves, lookahead=other).value.item() for other in {1, 2, 4} - {lookahead}
    }
    assert loss.value.item() not in others, "seed 3 cannot tell the choice"
