"""The Fréchet distance: against closed forms, and against what it should do as two sets move apart."""

import math

import pytest
import torch

from ctm.diffusion.frechet import Gaussian, fit_gaussian, frechet_distance, gaussian_distance, root


def draw(rows: int, features: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(features, features, generator=generator, dtype=torch.float64)
    return torch.randn(rows, features, generator=generator, dtype=torch.float64) @ mixed


def gaussian(mean: list[float], covariance: list[list[float]]) -> Gaussian:
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param(([0.0], [[1.0]]), ([0.0], [[1.0]]), 0.0, id="the same"),
        pytest.param(([0.0], [[1.0]]), ([3.0], [[1.0]]), 9.0, id="means apart: their squared distance"),
        pytest.param(([0.0], [[1.0]]), ([0.0], [[9.0]]), 4.0, id="one dimension: squared difference of deviations"),
        pytest.param(([1.0], [[4.0]]), ([3.0], [[1.0]]), 5.0, id="both"),
        pytest.param(
            ([0.0, 0.0], [[1.0, 0.0], [0.0, 4.0]]), ([0.0, 0.0], [[9.0, 0.0], [0.0, 16.0]]), 8.0, id="common axes"
        ),
        pytest.param(
            # tr(A + B) - 2 tr sqrt(A B), A = diag(1, 4), B a rotation of it by a right angle.
            ([0.0, 0.0], [[1.0, 0.0], [0.0, 4.0]]),
            ([0.0, 0.0], [[4.0, 0.0], [0.0, 1.0]]),
            2.0,
            id="the same spread, turned",
        ),
        pytest.param(
            # Of 2 x 2 matrices: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)), here of A B, tr 3 and det 3/2.
            ([0.0, 0.0], [[2.0, 0.0], [0.0, 1.0]]),
            ([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]]),
            5 - 2 * math.sqrt(3 + 2 * math.sqrt(1.5)),
            id="axes apart",
        ),
        pytest.param(([0.0, 0.0], [[1.0, 0.0], [0.0, 0.0]]), ([0.0, 0.0], [[0.0, 0.0], [0.0, 1.0]]), 2.0, id="flat"),
    ],
)
def test_the_closed_forms_hold(one, other, expected):
    assert gaussian_distance(gaussian(*one), gaussian(*other)) == pytest.approx(expected, abs=1e-9)
    assert gaussian_distance(gaussian(*other), gaussian(*one)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rows", [20, 500])
def test_a_set_is_at_no_distance_from_itself(rows):
    """Also of fewer rows than features, where the covariance is flat in most directions."""
    features = 30 * draw(rows, 40, seed=0)
    scale = fit_gaussian(features).covariance.trace().item()
    assert frechet_distance(features, features) < 1e-7 * scale
    assert frechet_distance(features, features[torch.randperm(rows)]) < 1e-7 * scale


def test_distance_grows_with_a_shift_and_with_noise():
    features, noise = draw(800, 12, seed=1), torch.randn(800, 12, generator=torch.Generator().manual_seed(2))
    shifts = [frechet_distance(features, features + shift) for shift in (0, 0.5, 1, 2)]
    assert shifts == pytest.approx([0, 12 * 0.25, 12, 48], abs=1e-6)
    noisy = [frechet_distance(features, features + size * noise) for size in (0, 0.5, 1, 2, 4)]
    assert noisy == sorted(noisy)
    assert noisy[1] > 1e-3


def test_it_is_symmetric_and_few_rows_make_it_larger():
    one, other = draw(2000, 8, seed=3), draw(2000, 8, seed=4)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one))
    halves = [frechet_distance(one[:rows], one[1000 : 1000 + rows]) for rows in (20, 100, 1000)]
    assert halves == sorted(halves, reverse=True)


def test_the_root_is_one():
    covariance = fit_gaussian(draw(50, 9, seed=5)).covariance
    torch.testing.assert_close(root(covariance) @ root(covariance), covariance)
    torch.testing.assert_close(root(covariance), root(covariance).T)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        pytest.param(torch.zeros(1, 3), r"at least 2 rows, got \(1, 3\)", id="one row"),
        pytest.param(torch.zeros(4), r"must be \[rows, features\]", id="no features"),
        pytest.param(torch.tensor([[0.0], [math.nan]]), "must be finite", id="not finite"),
    ],
)
def test_what_has_no_distance_is_refused(features, message):
    with pytest.raises(ValueError, match=message):
        fit_gaussian(features)


def test_sets_of_other_features_are_refused():
    with pytest.raises(ValueError, match="the same features, got 3 and 4"):
        frechet_distance(draw(5, 3, seed=0), draw(5, 4, seed=0))
