"""Numbers drawn by seed, row and link: the same on every machine, and different wherever one of the three differs."""

from itertools import combinations, product

import numpy as np
import pytest

from serving.chance import Chance


@pytest.mark.parametrize(
    ("seed", "row", "link", "numbers"),
    [
        pytest.param(0, 0, 0, [0.011546754286331562, 0.24154919656271812, 0.11142585551493822], id="all zero"),
        pytest.param(
            2**64 - 1, 5, 7, [0.7996573221749631, 0.3243491827945747, 0.13353394220501047], id="the largest seed"
        ),
    ],
)
def test_the_numbers_are_these_wherever_they_are_drawn(seed, row, link, numbers):
    assert Chance(seed).uniform(row, link, count=3).tolist() == numbers


def test_more_numbers_begin_with_the_same():
    np.testing.assert_array_equal(Chance(3).uniform(1, 4, 9)[:5], Chance(3).uniform(1, 4, 5))


def test_what_was_drawn_before_changes_nothing():
    chance, (alone,) = Chance(2), Chance(2).uniform(3, 4)
    for count in range(1, 6):
        chance.uniform(1, 1, count)
        assert chance.uniform(3, 4)[0] == alone


def test_no_two_rows_or_links_share_a_number():
    places = product((0, 1, 11), (0, 1, 2), (0, 1, 2))
    drawn = {(seed, *place): set(Chance(seed).uniform(*place, count=100)) for seed, *place in places}
    assert all(not drawn[one] & drawn[other] for one, other in combinations(drawn, 2))


def test_numbers_are_spread_over_zero_to_one():
    numbers = np.array([Chance(7).uniform(row, link)[0] for row in range(50) for link in range(50)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] == pytest.approx(250, abs=60)


def test_normal_numbers_are_standard_and_as_few_as_asked_for():
    drawn = Chance(7).normal(2, 3, 20_001)
    assert (drawn.dtype, drawn.shape) == (np.float32, (20_001,))
    assert (drawn.mean(), drawn.std()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))
    within = [np.mean(np.abs(drawn) < deviations) for deviations in (1, 2, 3)]
    assert within == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.01)


def test_normal_numbers_are_these_wherever_they_are_drawn():
    expected = [0.11655651777982712, -0.6835324168205261, 0.09819597750902176]
    np.testing.assert_allclose(Chance(0).normal(0, 0, 3), expected, rtol=1e-6)


@pytest.mark.parametrize("other", [(8, 2, 3), (7, 1, 3), (7, 2, 4)], ids=["seed", "row", "link"])
def test_normal_numbers_of_others_have_nothing_to_do_with_these(other):
    seed, row, link = other
    one, another = Chance(7).normal(2, 3, 4000), Chance(seed).normal(row, link, 4000)
    assert abs(np.corrcoef(one, another)[0, 1]) < 0.06
