"""Synchronisation: which pairs there are, and how their sums forget."""

import math

import numpy as np
import pytest
import torch

from ctm.config import CTMConfig
from ctm.synapse import unet_widths
from ctm.sync import Synchronisation, diagonal_of, pair_each_with_each, select_pairs


def pairs_of(selection: str, seed: int = 0, **settings):
    config = CTMConfig(
        ticks=1, width=40, memory=1, attention_width=4, heads=1, out_neurons=30, action_neurons=10, out_dims=2,
        neuron_selection=selection, **settings,
    )  # fmt: skip
    return select_pairs(config, torch.Generator().manual_seed(seed))


def test_first_last_pairs_the_first_neurons_for_out_and_the_last_for_action():
    action, out = pairs_of("first-last")
    assert torch.equal(action[0].unique(), torch.arange(30, 40))
    assert torch.equal(out[0].unique(), torch.arange(30))
    assert list(zip(*(side[:3].tolist() for side in out), strict=True)) == [(0, 0), (0, 1), (0, 2)]
    assert list(zip(*(side[-3:].tolist() for side in action), strict=True)) == [(38, 38), (38, 39), (39, 39)]


def test_random_pairing_starts_with_its_self_pairs():
    for left, right in pairs_of("random-pairing", self_pairs=6):
        assert torch.equal(left[:6], right[:6])
        assert not torch.equal(left[6:], right[6:])
        assert 0 <= int(min(left.min(), right.min())) <= int(max(left.max(), right.max())) < 40


def test_random_draws_left_and_right_apart_and_with_replacement():
    _, (left, right) = pairs_of("random")
    assert not torch.equal(left[diagonal_of(len(left))], right[diagonal_of(len(right))])
    assert len(left[diagonal_of(len(left))].unique()) < 30, "thirty of forty without a double is all but impossible"


def test_pairs_are_the_upper_triangle_row_by_row():
    left, right = pair_each_with_each(torch.tensor([5, 6, 7]), torch.tensor([1, 2, 3]))
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == [(5, 1), (5, 2), (5, 3), (6, 2), (6, 3), (7, 3)]


@pytest.mark.parametrize("neurons", [1, 2, 3, 64, 1000])
def test_the_diagonal_is_the_way_back_to_the_neurons(neurons):
    selected = torch.randperm(neurons, generator=torch.Generator().manual_seed(neurons))
    left, right = pair_each_with_each(selected, selected)
    diagonal = diagonal_of(len(left))
    assert torch.equal(left[diagonal], selected)
    assert torch.equal(right[diagonal], selected)


@pytest.mark.parametrize(
    ("decay", "keep", "slope"),
    [
        pytest.param(0.0, 1.0, -1.0, id="never forgets"),
        pytest.param(1.0, math.exp(-1), -math.exp(-1), id="inside"),
        pytest.param(-2.0, 1.0, -1.0, id="below: kept at 0, still learning"),
        pytest.param(20.0, math.exp(-15), -math.exp(-15), id="above: kept at 15, still learning"),
    ],
)
def test_a_decay_outside_its_range_counts_as_its_limit_but_learns(decay, keep, slope):
    sync = Synchronisation(torch.tensor([0]), torch.tensor([0]))
    with torch.no_grad():
        sync.decay.fill_(decay)
    kept = sync.keep()
    kept.sum().backward()
    torch.testing.assert_close(kept.item(), keep, rtol=1e-5, atol=0)
    torch.testing.assert_close(sync.decay.grad.item(), slope, rtol=1e-5, atol=0)
    sync.project_decay()
    assert sync.decay.item() == min(max(decay, 0), 15)


def test_root_betas_count_forgetting_ticks():
    sync = Synchronisation(torch.arange(3), torch.arange(3))
    with torch.no_grad():
        sync.decay.copy_(torch.tensor([0.0, math.log(2), 15.0]))
    expected = np.sqrt([[2, 1.5, 1], [3, 1.75, 1], [4, 1.875, 1]])
    np.testing.assert_allclose(sync.root_betas(3, first=2), expected, rtol=1e-6)
    np.testing.assert_allclose(sync.root_betas(2, first=1)[0], [1, 1, 1])


def test_unet_widths_are_cut_as_numpy_would():
    for width in [*range(16, 300), 512, 1000, 2048, 4096]:
        for depth in range(2, 17):
            assert unet_widths(width, depth) == [int(w) for w in np.linspace(width, 16, depth)], (width, depth)
    assert unet_widths(4096, 8) == [4096, 3513, 2930, 2347, 1764, 1181, 598, 16]
