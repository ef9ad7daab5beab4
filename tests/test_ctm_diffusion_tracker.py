"""The tracker: codes of time that keep near things near, places that keep their place, steps that make a difference."""

import math
from pathlib import Path

import pytest
import torch
from exported_part import check_exports
from torch import Tensor

from ctm.diffusion.tracker import TemporalSpatialTracker, TrackerConfig, code, place_code


def _tracker(*, trained: bool = True) -> TemporalSpatialTracker:
    """With a modulation that does something, as training would make it, or fresh."""
    torch.manual_seed(0)
    tracker = TemporalSpatialTracker(TrackerConfig(channels=8, heads=2, scales=2, code=16))
    if trained:
        torch.nn.init.normal_(tracker.film.weight, std=0.5)
    return tracker.eval()


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return (code(first, 32, 1.0, 1e4) - code(second, 32, 1.0, 1e4)).norm(dim=-1)


def test_nearby_times_have_nearer_codes_than_far_ones():
    gaps = 0.01 * 1.1 ** torch.arange(113)
    apart = _distance(torch.zeros(113), gaps)
    assert gaps[-1] < 1e4 / 20 < gaps[-1] * 1.2
    for gap, distance in zip(gaps, apart, strict=True):
        assert (apart[gaps >= 4 * gap] > distance).all(), f"{gap:.3g} and four times as much"
    close = _distance(torch.zeros(50), torch.linspace(0.0, 0.5, 50))
    assert (close.diff() > 0).all(), "up to half of the shortest period every moment counts"


def test_only_the_difference_of_times_matters_and_codes_have_length_1():
    gaps = torch.tensor([0.1, 0.7, 3.0, 40.0, 900.0])
    for start in (0.0, 2.5, 100.0):
        torch.testing.assert_close(
            _distance(torch.full((5,), start), start + gaps), _distance(torch.zeros(5), gaps), atol=2e-3, rtol=0
        )
    torch.testing.assert_close(code(gaps, 32, 1.0, 1e4).norm(dim=-1), torch.ones(5))


def test_places_near_each_other_have_nearer_codes():
    codes = place_code(16, 9, 9, like=torch.zeros(())).unflatten(0, (9, 9))
    here = codes[4, 4]
    assert (codes[4, 5] - here).norm() < (codes[4, 8] - here).norm()
    assert (codes[5, 4] - here).norm() < (codes[8, 4] - here).norm()
    assert len(torch.unique(codes.flatten(0, 1), dim=0)) == 81


@pytest.mark.parametrize("move", [(0, 3), (4, 0), (-2, -3)], ids=str)
def test_a_moved_blob_moves_its_features_equally(move):
    tracker = _tracker()
    image = torch.zeros(1, 8, 24, 24)
    image[:, :, 11:13, 11:13] = torch.randn(1, 8, 2, 2)
    moved = torch.roll(image, move, dims=(2, 3))
    expected = torch.roll(tracker.place(image), move, dims=(2, 3))
    torch.testing.assert_close(tracker.place(moved), expected)
    assert (tracker.place(image) - image).std() > 0.01, "the neighbourhood is seen"


def test_each_scale_looks_farther():
    tracker, image = _tracker(), torch.zeros(1, 8, 15, 15)
    image[:, :, 7, 7] = 1.0
    for scale, neighbours in enumerate(tracker.neighbours):
        rows = neighbours(image).abs().sum((0, 1, 3)).nonzero().flatten()
        assert (rows - 7).abs().max() == 2**scale


def test_attention_tells_equal_features_in_different_places_apart():
    tracker, image = _tracker(), torch.randn(1, 8, 6, 6)
    image[..., 1, 1] = image[..., 4, 5]
    found = tracker.attend(image)
    assert not torch.allclose(found[..., 1, 1], found[..., 4, 5], atol=1e-5)
    # One row alone: without places the order of what is seen would not matter.
    swapped = image.flip(-1)
    assert not torch.allclose(tracker.attend(swapped).flip(-1), found, atol=1e-5)


def test_different_steps_give_different_results_and_a_fresh_modulation_none():
    image = torch.randn(3, 8, 5, 5)
    step, other = torch.tensor([0, 10, 999]), torch.tensor([1, 11, 998])
    fresh = _tracker(trained=False)
    assert torch.equal(fresh.modulate(image, step), image)
    torch.testing.assert_close(fresh(image, step), fresh(image, other))
    trained = _tracker()
    assert ((trained(image, step) - trained(image, other)).flatten(1).norm(dim=-1) > 1e-3).all()
    fresh.modulate(image, step).square().sum().backward()
    assert fresh.film.weight.grad is not None
    assert fresh.film.weight.grad.any(), "it can begin to learn"


def test_time_stamps_count_where_there_are_any():
    tracker, image, step = _tracker(), torch.randn(2, 8, 5, 5), torch.tensor([3, 3])
    early, late = tracker(image, step, torch.tensor([0.0, 0.0])), tracker(image, step, torch.tensor([0.0, 7.3]))
    torch.testing.assert_close(early[0], late[0])
    assert not torch.allclose(early[1], late[1], atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"channels": 6}, "channels must be a multiple of 4 and of heads 4, got 6", id="channels"),
        pytest.param({"code": 5}, "code must be even and at least 4, got 5", id="code"),
        pytest.param({"shortest": 9e9}, "shortest and longest must be positive and rising", id="periods"),
        pytest.param({"longest": math.inf}, "shortest and longest must be positive and rising", id="endless"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        TrackerConfig(**{"channels": 8, **settings})


def test_rows_stand_alone_and_it_exports(tmp_path: Path):
    tracker = _tracker()

    def examples(rows: int) -> tuple[Tensor, ...]:
        return torch.randn(rows, 8, 6, 5), torch.randint(1000, (rows,)), 100 * torch.rand(rows)

    names = ["features", "step", "time"]
    check_exports(tracker, examples, names, ["tracked"], tmp_path, tolerance=1e-4)
    given = examples(7)
    expected = tracker(*given).detach()
    for row in range(7):
        torch.testing.assert_close(tracker(*(x[row : row + 1] for x in given))[0], expected[row], atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(tracker(*given).float(), expected, atol=0.1, rtol=0.1)
