"""The learning rate and the order of rows: functions of the update's number."""

import golden
import numpy as np
import pytest
import torch

from ctm.training.chance import Purpose, RowOrder, derived_seed
from ctm.training.schedule import learning_rate


@pytest.mark.parametrize("name", golden.names(lambda meta: "cases" in meta))
def test_recorded_learning_rates_agree(name: str) -> None:
    recording = golden.load(name)
    cases = {case: facts for case, facts in recording.meta["cases"].items() if "warmup" in facts}
    assert cases, f"{name} records no learning rates"
    for case, facts in cases.items():
        expected = recording.group(case)["out/lr"]
        course = {"warmup": facts["warmup"], "updates": facts["max"]}
        limits = {"highest": facts["base_lr"], "lowest": facts["eta_min"]}
        rates = [learning_rate(update, **course, **limits) for update in range(len(expected))]
        np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-19, err_msg=case)


@pytest.mark.parametrize(
    ("update", "warmup", "rate"),
    [
        pytest.param(0, 0, 1.0, id="without a warm-up the first rate is the highest"),
        pytest.param(0, 1, 1.0, id="a warm-up of one update is none"),
        pytest.param(4, 5, 1.0, id="the warm-up ends at the highest"),
        pytest.param(5, 5, 1.0, id="the cosine begins at the highest"),
        pytest.param(55, 10, 0.55, id="half-way the cosine is in the middle"),
        pytest.param(100, 10, 0.1, id="at the end the rate is the lowest"),
        pytest.param(300, 10, 0.1, id="past the end it stays there"),
    ],
)
def test_landmarks_of_the_learning_rate(update: int, warmup: int, rate: float) -> None:
    assert learning_rate(update, warmup=warmup, updates=100, highest=1.0, lowest=0.1) == pytest.approx(rate)


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    order = RowOrder(seed=3, rows=10, batch_size=5)
    epochs = [torch.cat([order.indices(2 * epoch), order.indices(2 * epoch + 1)]) for epoch in range(3)]
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(10))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_the_order_depends_on_the_seed_and_the_update_alone() -> None:
    forwards, jumped = RowOrder(seed=3, rows=100, batch_size=7), RowOrder(seed=3, rows=100, batch_size=7)
    walked = [forwards.indices(update).tolist() for update in range(40)]
    assert jumped.indices(33).tolist() == walked[33]
    assert jumped.indices(2).tolist() == walked[2]
    assert RowOrder(seed=4, rows=100, batch_size=7).indices(0).tolist() != walked[0]


def test_a_batch_larger_than_the_training_set_is_refused() -> None:
    with pytest.raises(ValueError, match="at most the 10 rows of the training set, got 11"):
        RowOrder(seed=0, rows=10, batch_size=11)


def test_no_two_purposes_or_updates_share_a_seed() -> None:
    seeds = [derived_seed(0, purpose, update) for purpose in Purpose for update in range(50)]
    assert len(set(seeds)) == len(seeds)
