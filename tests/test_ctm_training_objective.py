"""What is descended: the task's loss, or the energy loss alone where the model has an energy head."""

import pytest
import torch

from ctm.certainty import most_certain
from ctm.losses import energy_loss, image_loss
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
