"""Parity: generated sequences, their targets, and their independence of company."""

import itertools

import numpy as np
import pytest
import torch

from ctm.tasks import TaskConfig, load_task
from ctm.tasks.config import AugmentConfig, ParityConfig
from ctm.tasks.parity import SHARES, share_of

CONFIG = TaskConfig(name="parity", parity=ParityConfig(length=9, train_rows=400, held_out_rows=50, test_rows=60))


def test_a_target_is_the_parity_of_the_minus_ones_so_far() -> None:
    inputs, targets = load_task(CONFIG).train.take(torch.arange(400))
    assert inputs.shape == targets.shape == (400, 9)
    assert set(inputs.unique().tolist()) == {-1.0, 1.0}
    for sequence, target in zip(inputs[:20].tolist(), targets[:20].tolist(), strict=True):
        assert target == [sequence[: place + 1].count(-1.0) % 2 for place in range(9)]


def test_a_row_is_the_same_alone_and_in_company() -> None:
    train = load_task(CONFIG).train
    together = train.take(torch.tensor([5, 3, 7])).inputs
    assert torch.equal(train.take(torch.tensor([3])).inputs[0], together[1])


def test_no_sequence_of_one_part_comes_up_in_another() -> None:
    task = load_task(CONFIG)
    parts = (task.train, task.held_out, task.test)
    assert [len(part) for part in parts] == [400, 50, 60]
    # All 512 sequences of nine signs are drawn, each many times.
    found = [{tuple(row) for row in part.take(torch.arange(20_000)).inputs.tolist()} for part in parts]
    assert sum(map(len, found)) == len(set.union(*found)) == 512
    assert [round(len(one) / 64) for one in found] == [6, 1, 1], "about six, one and one of eight shares"


@pytest.mark.parametrize("length", [6, 7, 8])
def test_every_part_has_sequences_however_short_they_are(length: int) -> None:
    signs = np.array(list(itertools.product([0, 1], repeat=length)))
    shares = share_of(signs)
    for first, end in SHARES.values():
        assert ((shares >= first) & (shares < end)).any()
    with pytest.raises(ValueError, match=r"task.parity.length must lie in \[6, inf\), got 5"):
        ParityConfig(length=5)


def test_signs_are_fair_coins() -> None:
    inputs = load_task(TaskConfig(name="parity")).train.take(torch.arange(20_000)).inputs
    # 20,000 tosses a column: five standard deviations are 0.035; neighbours must not be related either.
    assert inputs.mean(dim=0).abs().max() < 0.035
    assert (inputs[:, 1:] * inputs[:, :-1]).mean(dim=0).abs().max() < 0.035
    assert (inputs[1:] * inputs[:-1]).mean(dim=0).abs().max() < 0.035


def test_images_alone_have_variants() -> None:
    with pytest.raises(ValueError, match="the task parity allows none"):
        TaskConfig(name="parity", augment=AugmentConfig(shift=1.0))
