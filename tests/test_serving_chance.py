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
