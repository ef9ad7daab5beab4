"""The bundled digits, and random variants of images."""

import pytest
import torch

from ctm.tasks import TaskConfig, load_task
from ctm.tasks.augment import augment
from ctm.tasks.config import AugmentConfig
from ctm.tasks.task import batches


def test_digits_come_in_three_parts_in_natural_units() -> None:
    task = load_task(TaskConfig(name="digits"))
    assert [len(part) for part in (task.train, task.held_out, task.test)] == [1079, 359, 359]
    for part in (task.train, task.held_out, task.test):
        inputs, targets = part.take(torch.arange(len(part)))
        assert inputs.shape[1:] == task.input_shape
        assert (inputs.dtype, inputs.min().item(), inputs.max().item()) == (torch.float32, 0.0, 1.0)
        assert (targets.dtype, set(targets.tolist())) == (torch.int64, set(range(10)))


def test_batches_go_through_all_rows_in_order() -> None:
    held_out = load_task(TaskConfig(name="digits")).held_out
    targets = torch.cat([batch.targets for batch in batches(held_out, 100)])
    assert torch.equal(targets, held_out.take(torch.arange(359)).targets)


def a_dot(row: int, column: int) -> torch.Tensor:
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, row, column] = 1.0
    return image


def test_shifts_move_what_is_there_by_at_most_their_limit() -> None:
    images = a_dot(4, 4).expand(200, 1, 9, 9)
    moved = augment(AugmentConfig(shift=2.0), images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    torch.testing.assert_close(moved.sum(dim=(1, 2, 3)), torch.ones(200))
    places = torch.arange(9.0)
    rows, columns = (moved.sum(dim=dim)[:, 0] @ places for dim in (3, 2))
    for centre in (rows, columns):
        assert 1.5 < (centre - 4).abs().max() <= 2.0001


def test_a_rotation_keeps_the_centre_and_turns_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    turned = augment(AugmentConfig(rotation=90.0), (a_dot(4, 4) + a_dot(0, 4)).expand(50, 1, 9, 9), generator)
    torch.testing.assert_close(turned[:, 0, 4, 4], torch.ones(50))
    assert turned[:, 0, 0, 4].max() < 1.0


def test_sizes_change_the_area_by_their_square() -> None:
    square = torch.zeros(1, 1, 33, 33)
    square[:, :, 8:25, 8:25] = 1.0
    grown = augment(AugmentConfig(scale=0.2), square.expand(300, 1, 33, 33), torch.Generator().manual_seed(0))
    sides = grown.sum(dim=(1, 2, 3)).sqrt() / 17
    assert 0.79 < sides.min() < 0.83
    assert 1.17 < sides.max() < 1.21


def test_variants_depend_on_the_generator_alone() -> None:
    images, config = torch.rand(4, 1, 8, 8), AugmentConfig(shift=1.0, rotation=10.0, scale=0.1, shear=5.0)
    first, again, other = (augment(config, images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        pytest.param({"shift": -1.0}, r"task.augment.shift must lie in \[0.0, inf\), got -1.0", id="negative"),
        pytest.param({"scale": 1.0}, r"task.augment.scale must lie in \[0.0, 0.9\], got 1.0", id="nothing left"),
    ],
)
def test_impossible_variants_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**setting)
