"""The guided denoiser: what a thought may change, and what a row that abstains gets."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_diffusion import CONTROL, CORE, DIFFUSION, noisy_rows, small_model

from ctm.diffusion.config import DiffusionConfig, LossWeights
from ctm.diffusion.images import to_diffusion, to_pixels
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.quality import draw_noise, judge_noise, noise_quality
from ctm.diffusion.sampling import sample

ROWS = 6
NOBODY = torch.zeros(ROWS, dtype=torch.bool)


def guided(model: EnhancedCTMDiffusion, abstains: torch.Tensor, tick: int = -1) -> torch.Tensor:
    noisy, level, label = noisy_rows(ROWS)
    thought = model.think(noisy, level, label)
    guide = model.guide(thought.predictions[:, tick], thought.certainties[:, tick], thought.states[:, tick], abstains)
    return model.denoise(noisy, level, label, guide)


@torch.no_grad()
def test_an_abstaining_row_takes_the_base_prediction_and_no_other_row_does():
    model = small_model()
    base = model.denoise(*noisy_rows(ROWS), None)
    abstains = torch.tensor([True, False, True, False, False, True])
    some, none = guided(model, abstains), guided(model, NOBODY)
    torch.testing.assert_close(some[abstains], base[abstains], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(some[~abstains], none[~abstains])
    assert ((none - base).abs().amax((1, 2)) > 1e-3).all(), "a thought changes every row that it guides"


@torch.no_grad()
def test_what_an_abstaining_row_thought_changes_nothing_at_all():
    model, everyone = small_model(), ~NOBODY
    assert torch.equal(guided(model, everyone, tick=0), guided(model, everyone, tick=-1))
    assert not torch.equal(guided(model, NOBODY, tick=0), guided(model, NOBODY, tick=-1))


@torch.no_grad()
def test_guidance_is_as_strong_as_its_tick_is_certain_and_nothing_where_the_row_abstains():
    model = small_model()
    thought = model.think(*noisy_rows(ROWS))
    certainty = torch.tensor([-1e-7, 0.1, 0.5, 0.9, 1.0, 1.0 + 1e-6])
    told = thought.predictions[:, -1], certainty, thought.states[:, -1]
    torch.testing.assert_close(model.guide(*told, NOBODY).strength, certainty.clamp(0, 1))
    assert not model.guide(*told, ~NOBODY).strength.any()


@pytest.mark.parametrize("any_tick", [0.0, 1.0])
def test_while_learning_the_most_certain_tick_guides_or_one_that_was_drawn(any_tick, monkeypatch):
    model, thoughts, guides = small_model(any_tick=any_tick, base_share=0.5).train(), [], []
    think, paths = model._think, model.denoiser.paths
    monkeypatch.setattr(model, "_think", lambda seen: thoughts.append(think(seen)) or thoughts[-1])
    monkeypatch.setattr(model.denoiser, "paths", lambda *task: guides.append(task[-1]) or paths(*task))
    torch.manual_seed(5)
    model(torch.rand(32, 6, 6) * 2 - 1, torch.arange(32) % 4)
    (thought,), (guide,) = thoughts, guides
    told = (thought.states == guide.state[:, None]).all(-1)
    assert (told.sum(-1) == 1).all(), "one tick guides"
    most, tick = thought.certainties.argmax(-1), told.int().argmax(-1)
    assert torch.equal(tick, most) if any_tick == 0 else len(tick.unique()) == CORE.ticks
    certainty, alone = thought.certainties[torch.arange(32), tick].clamp(0, 1), guide.strength == 0
    torch.testing.assert_close(guide.strength, certainty.masked_fill(alone, 0.0))
    assert 0 < alone.sum() < 32
    assert not guide.strength.requires_grad, "a thought is certain of what it sees, not of what would suit the denoiser"
    assert guide.state.requires_grad


PATHS = {
    "modulation": ["denoiser.guidance.weight"],
    "attention": ["denoiser.thought_tokens.weight", "denoiser.thought_tokens.bias"],
    "estimate": ["denoiser.estimate.weight", "denoiser.estimate.bias"],
}


@pytest.mark.parametrize("only", PATHS)
@torch.no_grad()
def test_each_way_of_guiding_has_its_effect(only):
    model = small_model()
    without = small_model()
    for way, names in PATHS.items():
        for name in names:
            without.get_parameter(name).zero_()
            if way != only:
                model.get_parameter(name).zero_()
    assert (guided(model, NOBODY) - guided(without, NOBODY)).abs().max() > 1e-4


@torch.no_grad()
def test_level_and_class_matter_to_thought_and_denoiser():
    model = small_model()
    noisy, level, label = noisy_rows(ROWS)
    for other in ((noisy, (level + 7) % 20, label), (noisy, level, (label + 1) % 4)):
        assert not torch.allclose(model.think(noisy, level, label).predictions, model.think(*other).predictions)
        assert not torch.allclose(model.denoise(noisy, level, label, None), model.denoise(*other, None))


@torch.no_grad()
def test_certainty_is_that_of_the_bins_averaged_over_pixels():
    model = small_model()
    thought = model.think(*noisy_rows(ROWS))
    p = thought.predictions.unflatten(-1, (36, 4)).double().softmax(-1)
    entropy = -(p * p.log()).sum(-1) / np.log(4)
    torch.testing.assert_close(thought.certainties.double(), 1 - entropy.mean(-1), atol=1e-6, rtol=1e-6)


def test_gradients_reach_thought_and_denoiser_alike():
    model = small_model().train()
    torch.manual_seed(5)
    model(torch.rand(32, 6, 6) * 2 - 1, torch.arange(32) % 4).value.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_twice_the_guided_path_goes_on_from_the_base_path_and_both_learn():
    model, rows = small_model(twice=True), noisy_rows(ROWS)
    base = model.denoise(*rows, None)
    abstains = torch.tensor([True, False, True, False, False, True])
    some = guided(model, abstains)
    assert torch.equal(some[abstains], base[abstains])
    assert ((some - base).abs().amax((1, 2))[~abstains] > 1e-3).all()
    once = small_model()
    once.load_state_dict(model.state_dict())
    torch.testing.assert_close(once.denoise(*rows, None), base)
    assert not torch.allclose(guided(once, NOBODY), guided(model, NOBODY))
    torch.manual_seed(5)
    loss = model.train()(torch.rand(32, 6, 6) * 2 - 1, torch.arange(32) % 4)
    assert loss.losses["base"] > 0
    loss.value.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_a_denoiser_alone_goes_twice_through_its_layers_where_a_guided_one_does():
    rows = noisy_rows(ROWS)
    twice = small_model(guided=False, twice=True)
    once = small_model(guided=False)
    once.load_state_dict(twice.state_dict())
    assert not torch.allclose(twice.denoise(*rows, None), once.denoise(*rows, None))
    once.denoiser.layers = torch.nn.ModuleList([*once.denoiser.layers, *once.denoiser.layers])
    torch.testing.assert_close(twice.denoise(*rows, None), once.denoise(*rows, None))


def test_base_rows_teach_nothing_but_the_base_path():
    model = small_model(base_share=1.0, weights=LossWeights(bins=0.0)).train()
    torch.manual_seed(5)
    loss = model(torch.rand(32, 6, 6) * 2 - 1, torch.arange(32) % 4)
    loss.value.backward()
    taught = {
        name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()
    }
    assert taught == {"denoiser"}
    assert loss.guided == 0
    assert loss.base == pytest.approx(loss.value.item())


def test_what_is_descended_is_the_error_and_each_loss_times_its_weight():
    weights = LossWeights(bins=0.2, base=0.3, value=0.4, gate=0.05, goal=0.6, empathy=0.07, selfless=0.08)
    model = small_model(twice=True, base_share=0.0, weights=weights, **CONTROL).train()
    torch.manual_seed(5)
    loss = model(torch.rand(32, 6, 6) * 2 - 1, torch.arange(32) % 4)
    assert set(loss.losses) == {"bins", "base", "value", "gate", "goal", "empathy", "selfless"}
    weighed = sum(getattr(weights, name) * value for name, value in loss.losses.items())
    torch.testing.assert_close(loss.value, loss.guided + weighed)


def test_without_a_thought_it_is_a_denoiser_alone():
    torch.manual_seed(0)
    alone = EnhancedCTMDiffusion(CORE, replace(DIFFUSION, guided=False))
    assert alone.thinker is None
    loss = alone(torch.rand(8, 6, 6) * 2 - 1, torch.arange(8) % 4)
    assert loss.value > 0
    made = sample(alone.eval(), torch.arange(4), lambda _: torch.ones(4, 6, 6), steps=3)
    assert made.images.shape == (4, 6, 6)
    assert not made.abstained.any()


def noise_of(seed: int, rows: int):
    return lambda step: torch.randn(rows, 6, 6, generator=torch.Generator().manual_seed(seed * 1000 + step))


def test_a_sample_depends_on_its_noise_and_label_and_not_on_its_company():
    model, labels = small_model(), torch.arange(4)
    together = sample(
        model, labels, noise_of(1, 4), steps=5, eta=0.7, certainty_threshold=0.2, confidence_threshold=0.1
    )
    for row in range(4):
        alone = sample(
            model,
            labels[row : row + 1],
            lambda step, row=row: noise_of(1, 4)(step)[row : row + 1],
            steps=5,
            eta=0.7,
            certainty_threshold=0.2,
            confidence_threshold=0.1,
        )
        torch.testing.assert_close(alone.images[0], together.images[row], atol=1e-5, rtol=1e-5)
        assert torch.equal(alone.ticks_used[:, 0], together.ticks_used[:, row])


def test_abstaining_goes_by_the_tick_that_answers_at_each_step_of_its_own():
    model, labels = small_model(), torch.arange(4)
    free = sample(model, labels, noise_of(2, 4), steps=6)
    threshold = float(free.certainties[0].median()) + 1e-6
    some = sample(model, labels, noise_of(2, 4), steps=6, confidence_threshold=threshold)
    assert torch.equal(some.abstained, some.certainties < threshold)
    assert some.abstained[0].any()
    assert not some.abstained[0].all()
    kept = ~some.abstained[0]
    torch.testing.assert_close(some.estimates[0][kept], free.estimates[0][kept])
    assert not torch.allclose(some.estimates[0][~kept], free.estimates[0][~kept])


def test_a_certain_thought_ends_early_and_answers_with_its_best_tick_so_far():
    model, labels = small_model(), torch.arange(4)
    whole = sample(model, labels, noise_of(3, 4), steps=1)
    assert (whole.ticks_used == CORE.ticks).all()
    early = sample(model, labels, noise_of(3, 4), steps=1, certainty_threshold=0.0)
    assert (early.ticks_used == 1).all()
    assert (early.certainties <= whole.certainties).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"steps": 0}, "steps must be in [1, 20], got 0", id="no steps"),
        pytest.param({"steps": 21}, "steps must be in [1, 20], got 21", id="more steps than levels"),
        pytest.param({"steps": 2, "eta": 1.5}, "eta must be in [0, 1], got 1.5", id="eta"),
        pytest.param({"steps": 2, "confidence_threshold": -0.1}, "must be in [0, 1], got -0.1", id="threshold"),
    ],
)
def test_samples_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(small_model(), torch.arange(2), noise_of(1, 2), **options)


@pytest.mark.parametrize(
    ("labels", "shape", "message"),
    [
        pytest.param([0, 4], (2, 6, 6), "labels must be classes, 0 to 3, got 4", id="a class too many"),
        pytest.param([-1, 0], (2, 6, 6), "labels must be classes, 0 to 3, got -1", id="a class below 0"),
        pytest.param([0, 1], (3, 6, 6), "noise must be [2, 6, 6], an image a label, got [3, 6, 6]", id="rows"),
        # Cut into patches it would pass for two images.
        pytest.param([0], (1, 12, 6), "noise must be [1, 6, 6], an image a label, got [1, 12, 6]", id="two images"),
    ],
)
def test_rows_that_cannot_be(labels, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sample(small_model(), torch.tensor(labels), lambda _: torch.zeros(shape), steps=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"side": 7}, "diffusion.patch must divide side 7, got 2", id="patch"),
        pytest.param({"side": 8, "heads": 3}, "diffusion.heads must divide width 64, got 3", id="heads"),
        pytest.param({"side": 8, "bins": 1}, "bins and levels must be at least 2, got 1 and 200", id="bins"),
        pytest.param({"side": 8, "schedule": "sine"}, "must be one of linear, cosine, got 'sine'", id="schedule"),
        pytest.param({"side": 8, "confidence_threshold": 1.5}, "must be in [0, 1], got 1.5", id="threshold"),
        pytest.param({"side": 8, "margin": -1}, "diffusion.margin must be a whole number of at least 0", id="margin"),
        pytest.param({"side": 8, "layers": 0}, "diffusion.layers must be a whole number of at least 1", id="layers"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DiffusionConfig(**settings)


def test_a_core_for_other_images_is_refused_with_both_sides():
    with pytest.raises(ValueError, match=re.escape("model.input_shape must be (16, 9) for diffusion of 9 x 9 pixels")):
        EnhancedCTMDiffusion(CORE, replace(DIFFUSION, side=9))


def test_settings_come_back_from_a_checkpoint_and_unknown_ones_are_named():
    assert DiffusionConfig.from_dict(DIFFUSION.to_dict()) == DIFFUSION
    with pytest.raises(ValueError, match="no setting 'sides'"):
        DiffusionConfig.from_dict({"sides": 3})


def test_all_models_are_judged_on_the_same_noise_whatever_the_batches():
    images, labels = torch.rand(40, 6, 6) * 2 - 1, torch.arange(40) % 4
    model = small_model()

    def judged(batch_size: int):
        return judge_noise(
            model, lambda rows: (images[rows], labels[rows]), torch.arange(40), batch_size=batch_size, seed=7
        )

    whole, parts = judged(40), judged(7)
    for left, right in zip(whole, parts, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    level, noise = draw_noise(torch.arange(40), torch.Size([6, 6]), 20, 7)
    assert len(noise.unique()) > 1400, "each row has noise of its own"
    assert not torch.equal(noise, draw_noise(torch.arange(40), torch.Size([6, 6]), 20, 8)[1])
    assert np.bincount(level, minlength=20).min() >= 1, "levels are spread evenly"
    quality = noise_quality(whole, 20)
    assert quality.abstention[0].abstaining == 0
    assert quality.abstention[0].error == pytest.approx(quality.guided)
    shares = [point.abstaining for point in quality.abstention]
    assert shares == sorted(shares)


def test_images_are_pooled_and_scaled_and_come_back():
    pixels = torch.rand(3, 1, 12, 12)
    images = to_diffusion(pixels, 6)
    assert images.shape == (3, 6, 6)
    torch.testing.assert_close(to_pixels(images[0, 0, 0]), pixels[0, 0, :2, :2].mean())
