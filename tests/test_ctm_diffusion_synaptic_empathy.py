"""Synaptic empathy: what resonates, that the pull only ever leads nearer, and that the reward can be learned by."""

import math

import pytest
import torch
from torch.nn import functional as F

from ctm.diffusion.synaptic_empathy import SynapticEmpathy, SynapticEmpathyConfig, empathy_loss, resonance

DEGREES = [0, 30, 60, 90, 120, 150, 180]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"width": 0}, "synaptic_empathy.width must be a whole number", id="no neurons"),
        pytest.param({"strength": 0.0}, "strength must be above 0 and at most 1, got 0.0", id="no pull"),
        pytest.param({"strength": 1.5}, "strength must be above 0 and at most 1, got 1.5", id="overshooting"),
        pytest.param({"strength": math.nan}, "strength must be above 0", id="no number"),
        pytest.param({"measure": "dot"}, r"measure must be one of \('cosine', 'correlation'\)", id="measure"),
    ],
)
def test_impossible_settings_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        SynapticEmpathyConfig(**{"width": 3, **options})


@pytest.mark.parametrize("measure", ["cosine", "correlation"])
def test_resonance_is_the_cosine_of_the_angle_between_traces(measure):
    observed = F.normalize(draw(2, 5, 9) - draw(2, 5, 9).mean(-1, keepdim=True), dim=-1)
    across = draw(2, 5, 9, seed=1)
    across = across - across.mean(-1, keepdim=True)
    across = F.normalize(across - (across * observed).sum(-1, keepdim=True) * observed, dim=-1)
    for degrees in DEGREES:
        angle = math.radians(degrees)
        own = 3 * (math.cos(angle) * observed + math.sin(angle) * across)
        torch.testing.assert_close(
            resonance(own, observed, measure), torch.full((2, 5), math.cos(angle)), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("measure", ["cosine", "correlation"])
def test_resonance_is_mutual_turns_with_the_sign_and_knows_no_size(measure):
    own, observed = draw(3, 4, 6), draw(3, 4, 6, seed=1)
    felt = resonance(own, observed, measure)
    torch.testing.assert_close(resonance(observed, own, measure), felt)
    torch.testing.assert_close(resonance(own, -observed, measure), -felt)
    torch.testing.assert_close(resonance(100 * own, 0.01 * observed, measure), felt, atol=1e-5, rtol=0)


def test_only_correlation_passes_over_what_stands_still():
    own, observed = draw(3, 4, 6), draw(3, 4, 6, seed=1)
    torch.testing.assert_close(
        resonance(own + 5, observed - 3, "correlation"), resonance(own, observed, "correlation"), atol=1e-5, rtol=0
    )
    assert (resonance(own + 5, observed + 5, "cosine") > 0.8).all()


@pytest.mark.parametrize("measure", ["cosine", "correlation"])
def test_a_silent_trace_resonates_with_nothing_and_has_a_gradient(measure):
    own = torch.zeros(2, 3, 4, requires_grad=True)
    felt = resonance(own, draw(2, 3, 4), measure)
    assert not felt.any()
    felt.sum().backward()
    assert own.grad is not None
    assert torch.isfinite(own.grad).all()


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_the_pull_leads_nearer_and_never_past(strength):
    module = SynapticEmpathy(SynapticEmpathyConfig(width=8, strength=strength))
    torch.nn.init.constant_(module.openness, 4.0)
    own, observed = draw(50, 8, 5), draw(50, 8, 5, seed=1)
    with torch.no_grad():
        found = module(own, observed)
    before, after = observed[..., -1] - own[..., -1], observed[..., -1] - own[..., -1] - found.modulation
    assert (after * before >= 0).all(), "not past it"
    assert (after.abs() < before.abs()).all(), "nearer"


def test_neurons_in_step_are_pulled_and_opposite_ones_are_not():
    trace = draw(1, 2, 5)
    own = trace * torch.tensor([1.0, -1.0])[None, :, None]
    found = SynapticEmpathy(SynapticEmpathyConfig(width=2))(2 * own, trace)
    torch.testing.assert_close(found.by_neuron, torch.tensor([[1.0, -1.0]]))
    torch.testing.assert_close(found.modulation, torch.tensor([[-0.25 * trace[0, 0, -1], 0.0]]), atol=1e-6, rtol=0)
    assert found.reward.item() == pytest.approx(0, abs=1e-6)


def test_tick_by_tick_the_own_trace_falls_in_step():
    module, ticks = SynapticEmpathy(SynapticEmpathyConfig(width=16, strength=0.8)), torch.arange(40)
    torch.nn.init.constant_(module.openness, 1.0)
    own = other = torch.zeros(4, 16, 6)
    rewards = []
    for tick in ticks:
        drive, seen = draw(4, 16, seed=int(tick)), draw(4, 16, seed=1000 + int(tick))
        own, other = torch.cat([own[..., 1:], drive[..., None]], -1), torch.cat([other[..., 1:], seen[..., None]], -1)
        with torch.no_grad():
            found = module(own, other)
        own = torch.cat([own[..., :-1], (drive + found.modulation)[..., None]], dim=-1)
        rewards.append(found.reward.mean().item())
    assert abs(rewards[0]) < 0.2
    assert sum(rewards[-10:]) / 10 > 0.25


def test_the_loss_draws_the_own_trace_and_leaves_the_observed_one_alone():
    module = SynapticEmpathy(SynapticEmpathyConfig(width=5))
    own, observed = draw(3, 5, 4).requires_grad_(), draw(3, 5, 4, seed=1).requires_grad_()
    losses = []
    for _ in range(20):
        loss = empathy_loss(module(own, observed).reward)
        (slope,) = torch.autograd.grad(loss, own, retain_graph=True)
        assert torch.autograd.grad(loss, observed, allow_unused=True) == (None,)
        own = (own - 5 * slope).detach().requires_grad_()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0.7 > 0.2 > losses[-1]


def test_neurons_learn_to_open_where_being_drawn_is_rewarded():
    module = SynapticEmpathy(SynapticEmpathyConfig(width=6))
    own, observed = draw(20, 6, 4), draw(20, 6, 4, seed=1)
    moved = torch.cat([own[..., :-1], (own[..., -1] + module(own, observed).modulation)[..., None]], dim=-1)
    empathy_loss(resonance(moved, observed, "cosine").mean(-1)).backward()
    assert module.openness.grad is not None
    assert (module.openness.grad < 0).all(), "descending opens"


def test_halves_are_compared_in_full_precision_and_a_row_alone_is_the_same():
    module = SynapticEmpathy(SynapticEmpathyConfig(width=5))
    own, observed = draw(6, 5, 4).bfloat16(), draw(6, 5, 4, seed=1).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        together = module(own, observed)
        alone = [module(own[row, None], observed[row, None]) for row in range(6)]
    for name, values in together._asdict().items():
        assert values.dtype == torch.float32
        assert torch.equal(values, torch.cat([getattr(found, name) for found in alone])), name
