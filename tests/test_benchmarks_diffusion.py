"""Samples that a benchmark judges: whose noise they are drawn from, and what is counted."""

import torch
from small_diffusion import small_model

from benchmarks.diffusion_samples import Setting, draw_samples, labels_of, noise_of, settings_to_try


def test_noise_is_a_matter_of_row_step_and_seed_and_of_nothing_else():
    together, alone = noise_of(torch.arange(6), 4, seed=1), noise_of(torch.tensor([4]), 4, seed=1)
    drawn = torch.stack([together(step) for step in range(3)])
    assert torch.equal(drawn[2, 4], alone(2)[0])
    assert len(drawn.unique()) == drawn.numel(), "no step and no row has another's noise"
    assert not torch.equal(drawn[0], noise_of(torch.arange(6), 4, seed=2)(0))


def test_batches_change_no_sample_and_thresholds_let_about_their_share_abstain():
    model, labels = small_model(), labels_of(10, 4)
    assert torch.bincount(labels).tolist() == [3, 3, 2, 2]
    free = draw_samples(model, labels, Setting(steps=4, eta=0.5), seed=0)
    parts = draw_samples(model, labels, Setting(steps=4, eta=0.5), seed=0, batch_size=3)
    torch.testing.assert_close(parts.images, free.images, atol=1e-5, rtol=1e-5)
    (setting,) = settings_to_try(free, 4, 0.5, [0.5])
    below = (free.certainties < setting.confidence_threshold).double().mean()
    assert 0.4 < below < 0.6
