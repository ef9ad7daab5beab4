"""Numbers drawn by seed, row and link: the same on every machine, and different wherever one of the three differs."""

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, product, starmap

import numpy as np
import pytest

from serving.chance import uniform


@pytest.mark.parametrize(
    ("drawn_by", "numbers"),
    [
        pytest.param((0, 0, 0), [0.011546754286331562, 0.24154919656271812, 0.11142585551493822], id="all zero"),
        pytest.param(
            (2**64 - 1, 5, 7), [0.7996573221749631, 0.3243491827945747, 0.13353394220501047], id="the largest seed"
        ),
    ],
)
def test_the_numbers_are_these_wherever_they_are_drawn(drawn_by, numbers):
    assert uniform(*drawn_by, count=3).tolist() == numbers


def test_more_numbers_begin_with_the_same():
    np.testing.assert_array_equal(uniform(3, 1, 4, 9)[:5], uniform(3, 1, 4, 5))


def test_threads_that_draw_at_once_do_not_meet():
    keys = list(product(range(5), range(5), range(40)))
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(lambda key: uniform(*key)[0], keys)
    assert list(together) == [numbers[0] for numbers in starmap(uniform, keys)]


def test_a_draw_leaves_nothing_to_the_next():
    (alone,) = uniform(2, 3, 4)
    for count in range(1, 6):
        uniform(1, 1, 1, count)
        assert uniform(2, 3, 4)[0] == alone


def test_no_two_rows_or_links_share_a_number():
    drawn = {key: set(uniform(*key, count=100)) for key in product((0, 1, 11), (0, 1, 2), (0, 1, 2))}
    assert all(not drawn[one] & drawn[other] for one, other in combinations(drawn, 2))


def test_numbers_are_spread_over_zero_to_one():
    numbers = np.array([uniform(7, row, link)[0] for row in range(50) for link in range(50)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] == pytest.approx(250, abs=60)
