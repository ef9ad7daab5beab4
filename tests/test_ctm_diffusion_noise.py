"""Noise schedules and reverse steps: their identities, and what sampling makes of a distribution that is known."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from ctm.diffusion.bins import bin_of, centres, expected
from ctm.diffusion.noise import NoiseSchedule, Parts
from ctm.diffusion.reverse import CLEAN, certain_stride, clipped, reverse_step, spaced_levels

SCHEDULES = ["linear", "cosine"]


def rows(seed: int, count: int = 64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    clean = 2 * torch.rand(count, 3, 3, generator=random) - 1
    return clean, torch.randn(clean.shape, generator=random), torch.randint(0, 50, (count,), generator=random)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_begins_with_hardly_any_noise_and_ends_with_hardly_anything_else(name):
    schedule = NoiseSchedule(name, 200)
    torch.testing.assert_close(schedule.signal.square() + schedule.spread.square(), torch.ones(200))
    assert (schedule.signal.diff() < 0).all(), "each level is noisier than the one before"
    assert schedule.signal[0] > 0.99
    assert schedule.signal[-1] < 0.05


def test_schedules_are_the_published_ones():
    share = np.arange(1, 1000) / 1000
    cosine = np.cos((share + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(NoiseSchedule("cosine", 1000).signal[:-1] ** 2, cosine, rtol=1e-4)
    linear = NoiseSchedule("linear", 1000).signal
    np.testing.assert_allclose(linear**2, np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), rtol=1e-4)
    assert NoiseSchedule("linear", 200).signal[-1] == pytest.approx(float(linear[-1]), rel=0.2), "as much noise in all"


def test_velocity_is_the_noise_where_there_is_none_and_the_image_turned_round_where_there_is_nothing_else():
    schedule = NoiseSchedule("cosine", 1000)
    clean, noise, _ = rows(seed=2, count=2)
    velocity = schedule.target(clean, noise, torch.tensor([0, 999]), "velocity")
    torch.testing.assert_close(velocity, torch.stack([noise[0], -clean[1]]), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", ["noise", "velocity"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_right_prediction_takes_an_image_apart_into_what_it_was_made_of(name, kind):
    schedule = NoiseSchedule(name, 50)
    clean, noise, level = rows(seed=3)
    level = level.clamp(max=40)  # beyond, rounding is all that is left of the image
    noisy = schedule.add(clean, noise, level)
    parts = schedule.take_apart(noisy, schedule.target(clean, noise, level, kind), level, kind)
    torch.testing.assert_close(parts.clean, clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(parts.noise, noise, atol=1e-4, rtol=1e-4)


def test_a_deterministic_step_keeps_the_same_image_and_the_same_noise():
    schedule = NoiseSchedule("cosine", 50)
    clean, noise, level = rows(seed=4)
    level = level.clamp(min=10)
    following, zero = level - 7, torch.zeros(len(level))
    noisy = schedule.add(clean, noise, level)
    stepped = reverse_step(schedule, Parts(clean, noise), level, following, torch.randn_like(noise), zero)
    torch.testing.assert_close(stepped, schedule.add(clean, noise, following), atol=1e-5, rtol=1e-5)
    ended = reverse_step(schedule, Parts(clean, noise), level, torch.full_like(level, CLEAN), noise, zero)
    torch.testing.assert_close(ended, clean)
    assert not torch.allclose(noisy, stepped)


def test_clipping_keeps_the_noisy_image():
    schedule = NoiseSchedule("cosine", 50)
    clean, noise, level = rows(seed=6)
    parts = Parts(3 * clean, noise)
    found = clipped(schedule, parts, level)
    assert found.clean.abs().max() == 1
    torch.testing.assert_close(
        schedule.add(found.clean, found.noise, level), schedule.add(*parts, level), atol=1e-5, rtol=1e-5
    )


def test_an_ancestral_step_has_the_posterior_of_the_forward_process():
    """Mean and variance of q(x_s | x_l, x_0) as DDPM gives them, computed from the betas."""
    schedule = NoiseSchedule("linear", 50)
    clean, noise, _ = rows(seed=5, count=1)
    level, following = torch.tensor([30]), torch.tensor([29])
    kept, kept_next = schedule.signal[30].double() ** 2, schedule.signal[29].double() ** 2
    beta = 1 - kept / kept_next
    noisy = schedule.add(clean, noise, level)
    mean = (kept_next.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - kept_next) * noisy) / (1 - kept)
    spread = ((1 - kept_next) / (1 - kept) * beta).sqrt()
    parts, one = Parts(clean, noise), torch.ones(1)
    still = reverse_step(schedule, parts, level, following, torch.zeros_like(noisy), one)
    moved = reverse_step(schedule, parts, level, following, torch.ones_like(noisy), one)
    torch.testing.assert_close(still, mean.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved - still, spread.float().expand_as(moved), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampling_with_the_exact_denoiser_gives_the_distribution(eta):
    """Two points, -0.5 and 0.5 with shares 0.25 and 0.75: their posterior mean is known at every level."""
    schedule, count, seed = NoiseSchedule("cosine", 100), 4000, 11
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, generator=random)
    points, shares = torch.tensor([-0.5, 0.5]), torch.tensor([0.25, 0.75])
    levels = [*spaced_levels(100, 50), CLEAN]
    for level, following in pairwise(levels):
        signal, spread = schedule.signal[level], schedule.spread[level]
        weight = (-(x - signal * points).square() / (2 * spread**2) + shares.log()).softmax(-1)
        clean = (weight @ points)[:, None]
        parts = Parts(clean, (x - signal * clean) / spread)
        level_n, next_n = torch.full((count,), int(level)), torch.full((count,), int(following))
        fresh = torch.randn(count, 1, generator=random)
        x = reverse_step(schedule, parts, level_n, next_n, fresh, torch.full((count,), eta))
    assert (x.abs() - 0.5).abs().mean() < 0.02, "samples are at the points"
    assert (x > 0).float().mean() == pytest.approx(0.75, abs=0.04), f"seed {seed}"


@pytest.mark.parametrize(
    ("steps", "expected_levels"),
    [
        pytest.param(1, [9], id="one step is from the noisiest level"),
        pytest.param(2, [9, 0], id="both ends"),
        pytest.param(4, [9, 6, 3, 0], id="evenly"),
        pytest.param(10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0], id="all"),
    ],
)
def test_the_levels_of_a_sample(steps, expected_levels):
    assert spaced_levels(10, steps).tolist() == expected_levels


@pytest.mark.parametrize("steps", [0, -1, 11])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match=rf"steps must be in \[1, 10\], got {steps}"):
        spaced_levels(10, steps)


def test_certain_thoughts_take_longer_strides():
    strides = [certain_stride(certainty, 0.5, 4) for certainty in (0.0, 0.5, 0.67, 0.85, 1.0, 1.0001)]
    assert strides == [1, 1, 2, 3, 4, 4]


def test_bins_cover_the_values_and_their_mean_is_the_value_to_half_a_bin():
    values = torch.linspace(-1, 1, 201)
    numbers = bin_of(values, 8)
    assert numbers.min() == 0
    assert numbers.max() == 7
    assert bin_of(torch.tensor([-3.0, 3.0]), 8).tolist() == [0, 7]
    sure = torch.nn.functional.one_hot(numbers, 8) * 100.0
    assert (expected(sure) - values).abs().max() <= 1 / 8 + 1e-6
    assert expected(torch.zeros(8)) == pytest.approx(0.0, abs=1e-7)
    np.testing.assert_allclose(centres(2), [-0.5, 0.5])


def test_one_level_is_no_schedule():
    with pytest.raises(ValueError, match="at least 2 levels, got 1"):
        NoiseSchedule("linear", 1)
