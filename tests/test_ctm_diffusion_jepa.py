"""Joint embedding prediction: what is seen and what is told, the slow copy, and that there is something to learn."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctm.diffusion.jepa import DRAWS, JEPAConfig, JEPAPredictor, SlowCopy, draw_views, jepa_loss, waves

ALMOST_ONE = 1 - 2**-24


def uniform(rows: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, DRAWS, generator=torch.Generator().manual_seed(seed))


def is_contiguous(view: Tensor) -> bool:
    places = view.nonzero()[:, 0].tolist()
    return places == list(range(places[0], places[0] + len(places))) if places else True


def test_views_are_blocks_of_the_sizes_asked_for_that_never_overlap():
    counts = torch.arange(25).repeat(80)
    extremes = torch.cartesian_prod(*[torch.tensor([0.0, ALMOST_ONE])] * DRAWS).repeat_interleave(25, dim=0)
    drawn = torch.cat([extremes, uniform(64 * 25)])
    context, target = draw_views(drawn, counts, 24, JEPAConfig())
    assert not (context & target).any()
    for count, seen, told in zip(counts.tolist(), context, target, strict=True):
        assert is_contiguous(seen)
        assert is_contiguous(told)
        assert not seen[max(count, 1) :].any()
        assert not told[count:].any()
        if count >= 2:
            assert 1 <= told.sum() <= max(1, round(0.3 * count + 0.5))
            assert round(0.3 * count - 0.5) <= seen.sum() <= max(1, round(0.7 * count + 0.5))
        assert seen.any(), "there is always something to look at"
        assert told.any() == (count >= 2)


def test_every_patch_comes_up_as_context_and_as_target():
    views = draw_views(uniform(2000), torch.full((2000,), 10), 10, JEPAConfig())
    assert (views.context.float().mean(0) > 0.1).all()
    assert (views.target.float().mean(0) > 0.05).all()


def test_a_rows_views_hang_on_its_own_numbers():
    drawn, counts = uniform(8), torch.tensor([3, 9, 24, 2, 5, 24, 7, 1])
    together = draw_views(drawn, counts, 24, JEPAConfig())
    for row in range(8):
        alone = draw_views(drawn[row : row + 1], counts[row : row + 1], 24, JEPAConfig())
        assert torch.equal(alone.context[0], together.context[row])
        assert torch.equal(alone.target[0], together.target[row])


def test_the_predictor_looks_at_the_context_and_at_nothing_else():
    torch.manual_seed(0)
    predictor, vectors = JEPAPredictor(6, 10, JEPAConfig(hidden=16)), torch.randn(1, 10, 6)
    context = torch.zeros(1, 10, dtype=torch.bool)
    context[0, 3:6] = True
    told = predictor(vectors, context)
    others = torch.where(context[..., None], vectors, torch.nan)
    assert torch.equal(predictor(others, context), told)
    for seen in range(3, 6):
        moved = vectors.clone()
        moved[0, seen] += 1
        assert (predictor(moved, context) != told).any(-1).all()
    swapped = vectors.clone()
    swapped[0, 3:6] = vectors[0, [4, 3, 5]]
    assert (predictor(swapped, context) != told).any(-1).all(), "it knows where each stands"


def test_places_are_told_apart():
    places = waves(200, 32)
    apart = torch.cdist(places, places) + torch.eye(200)
    assert apart.min() > 0.3
    assert waves(5, 7).shape == (5, 7)


def test_the_loss_is_the_mean_over_target_patches_and_rows_that_have_any():
    predicted, actual = torch.zeros(3, 4, 2), torch.ones(3, 4, 2)
    actual[0, 1], actual[1, 2:] = 3.0, 2.0
    target = torch.tensor([[0, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]).bool()
    assert jepa_loss(predicted, actual, target).item() == pytest.approx((9 + (1 + 4 + 4) / 3) / 2)
    assert jepa_loss(predicted, actual, torch.zeros(3, 4).bool()) == 0


def test_the_target_gets_no_gradient_and_the_rest_does():
    torch.manual_seed(0)
    encoder = nn.Linear(5, 6)
    slow, predictor = SlowCopy(encoder, 0.9), JEPAPredictor(6, 8, JEPAConfig(hidden=16))
    given, views = torch.randn(4, 8, 5), draw_views(uniform(4), torch.full((4,), 8), 8, JEPAConfig())
    jepa_loss(predictor(encoder(given), views.context), slow(given), views.target).backward()
    assert all(weight.grad is None and not weight.requires_grad for weight in slow.parameters())
    assert all(weight.grad.any() for weight in [*encoder.parameters(), *predictor.parameters()])
    # Nor where somebody gives vectors that could learn.
    vectors = torch.randn(4, 8, 6, requires_grad=True)
    jepa_loss(predictor(encoder(given), views.context), vectors, views.target).backward()
    assert vectors.grad is None


def test_the_slow_copy_follows_the_recurrence_in_weights_and_buffers():
    torch.manual_seed(0)
    encoder, decay = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 0.996
    slow = SlowCopy(encoder, decay)
    expected = {name: value.double() for name, value in encoder.state_dict().items()}
    for _ in range(20):
        encoder(torch.randn(8, 3))
        with torch.no_grad():
            for weight in encoder.parameters():
                weight.add_(torch.randn_like(weight))
        slow.update(encoder)
        for name, value in encoder.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    assert slow.module[1].num_batches_tracked == 20, "a count is taken over"
    for name, value in slow.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=1e-5)
            assert not torch.equal(value, encoder.state_dict()[name])


def test_the_slow_copy_is_in_the_checkpoint_and_always_in_evaluation():
    encoder = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    slow = SlowCopy(encoder, 0.5)
    slow.train()
    given, before = torch.randn(6, 3), copy.deepcopy(slow.state_dict())
    assert torch.equal(slow(given), slow(given))
    assert slow.training
    assert not any(module.training for module in slow.module.modules())
    assert all(torch.equal(value, before[name]) for name, value in slow.state_dict().items()), "asking moves nothing"
    assert set(before) == {f"module.{name}" for name in encoder.state_dict()}


def test_mixed_precision_tells_nearly_the_same():
    torch.manual_seed(0)
    predictor, vectors = JEPAPredictor(6, 10, JEPAConfig(hidden=16)), torch.randn(3, 10, 6)
    views = draw_views(uniform(3), torch.full((3,), 10), 10, JEPAConfig())
    plain = jepa_loss(predictor(vectors, views.context), vectors, views.target)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = jepa_loss(predictor(vectors, views.context), vectors, views.target)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0.02, atol=0)


def learn(rows_of: Callable[[Tensor], Tensor], updates: int) -> tuple[list[float], list[float]]:
    """By update: the loss over the variance of what is told, and the least deviation of any number of the vectors."""
    torch.manual_seed(0)
    config = JEPAConfig(hidden=32)
    encoder = nn.Sequential(nn.Linear(2, 32), nn.GELU(), nn.Linear(32, 8))
    slow, predictor = SlowCopy(encoder, config.decay), JEPAPredictor(8, 12, config)
    optimiser = torch.optim.Adam([*encoder.parameters(), *predictor.parameters()], lr=6e-3)
    generator, shares, deviations = torch.Generator().manual_seed(0), [], []
    for update in range(updates):
        given = rows_of(torch.rand(32, 12, 2, generator=generator))
        views = draw_views(uniform(32, update), torch.full((32,), 12), 12, config)
        vectors, told = encoder(given), slow(given)
        loss = jepa_loss(predictor(vectors, views.context), told, views.target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        slow.update(encoder)
        shares.append(loss.item() / told.flatten(0, 1).var(0).mean().item())
        deviations.append(vectors.flatten(0, 1).std(0).min().item())
    return shares, deviations


def round_a_circle(drawn: Tensor) -> Tensor:
    """Every row starts somewhere on a circle and goes on at the same speed: each patch tells all others."""
    angle = 2 * math.pi * drawn[:, :1, 0] + 0.1 * torch.arange(12)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def test_it_learns_what_the_context_tells_and_vectors_do_not_collapse():
    shares, deviations = learn(round_a_circle, 160)
    assert min(shares[:5]) > 0.8, "of the variance"
    assert sum(shares[-20:]) / 20 < 0.25
    assert min(deviations) > 0.5 * deviations[0]
    assert deviations[-1] > 0.05


def test_it_learns_nothing_where_the_context_tells_nothing():
    shares, _ = learn(lambda drawn: 2 * drawn - 1, 80)
    assert sum(shares[-20:]) / 20 > 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"context_share": (0.7, 0.3)}, r"context_share must be two rising .*\(0.7, 0.3\)", id="falling"),
        pytest.param(
            {"target_share": (0.0, 0.3)}, r"target_share must be two rising .*\(0.0, 0.3\)", id="nothing told"
        ),
        pytest.param({"context_share": (0.5, 1.0)}, "context_share must be two rising", id="nothing left to tell"),
        pytest.param({"hidden": 0}, "hidden must be a whole number of at least 1, got 0", id="no width"),
        pytest.param({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0", id="a copy that never moves"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        JEPAConfig(**settings)
