"""The model of the next byte: clueless at first, it looks back only, and it learns what can be told."""

import math

import pytest
import torch

from ctm.diffusion.entropy_model import EntropyModel, EntropyModelConfig, bits, entropies, next_byte_loss


def small_model(seed: int = 0, **settings) -> EntropyModel:
    torch.manual_seed(seed)
    return EntropyModel(EntropyModelConfig(**{"width": 16, "layers": 2, **settings}))


def draw(rows: int, length: int, seed: int = 0, values: int = 256) -> torch.Tensor:
    drawn = torch.randint(0, values, (rows, length), generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.uint8)


def test_the_first_byte_is_anybodys_guess():
    entropy = entropies(small_model()(draw(3, 9)))
    torch.testing.assert_close(entropy[:, 0], torch.full((3,), math.log(256)), rtol=1e-6, atol=0)


def test_entropy_lies_between_sure_and_clueless_and_is_that_of_the_distribution():
    logits = torch.randn(4, 7, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 7)[:, None]
    found = entropies(logits)
    expected = torch.distributions.Categorical(logits=logits.double()).entropy()
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)
    assert (found >= 0).all()
    assert (found <= math.log(256) + 1e-5).all()


@pytest.mark.parametrize(
    ("layers", "kernel", "field"),
    [pytest.param(1, 2, 2, id="2"), pytest.param(2, 3, 7, id="7"), pytest.param(3, 2, 8, id="8")],
)
def test_what_is_expected_of_a_byte_hangs_on_the_field_before_it_and_on_nothing_else(layers, kernel, field):
    model, given, changed_at = small_model(layers=layers, kernel=kernel), draw(1, 24), 10
    assert model.head.weight.dtype == torch.float32
    assert EntropyModelConfig(layers=layers, kernel=kernel).field == field
    other = given.clone()
    other[0, changed_at] ^= 255
    moved = (model(given) - model(other)).abs().amax(-1)[0] > 0
    assert moved.nonzero()[:, 0].tolist() == list(range(changed_at + 1, changed_at + 1 + field))


def test_bits_are_nats_over_ln_2():
    assert bits(math.log(256)) == pytest.approx(8)


def test_the_loss_is_the_mean_over_the_bytes_after_the_first_that_count():
    logits, given = torch.randn(3, 6, 256, generator=torch.Generator().manual_seed(0)), draw(3, 6)
    log_p = logits.log_softmax(-1)
    nats = -log_p.gather(-1, given.long()[..., None])[..., 0]
    torch.testing.assert_close(next_byte_loss(logits, given), nats[:, 1:].mean())
    expected = torch.cat([nats[0, 1:4], nats[1, 1:6]]).mean()
    torch.testing.assert_close(next_byte_loss(logits, given, torch.tensor([4, 6, 1])), expected)
    assert next_byte_loss(logits, given, torch.tensor([1, 0, 1])) == 0


def test_it_learns_what_can_be_told_and_stays_in_doubt_of_the_rest():
    """Bytes in turns: an even one is drawn from four, an odd one is the one before plus one."""
    model = small_model(width=24)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    drawn = draw(60 * 16, 12, seed=1, values=4).reshape(60, 16, 12) * 16
    for one in drawn:
        mixed = torch.stack([one, one + 1], dim=-1).flatten(1)
        optimiser.zero_grad()
        loss = next_byte_loss(model(mixed), mixed)
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        entropy = entropies(model(mixed))[:, 2:].mean(0)
    assert (entropy[0::2] - math.log(4)).abs().max() < 0.15, "drawn from four"
    assert entropy[1::2].max() < 0.1, "known"
    # 11 of 23 bytes cost ln 4, 12 nothing.
    assert bits(loss.item()) == pytest.approx(2 * 11 / 23, abs=0.15)


def test_mixed_precision_expects_the_same_to_the_bit():
    model, given = small_model(), draw(2, 30)
    plain = entropies(model(given))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(entropies(model(given)), plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"width": 0}, "width must be a whole number of at least 1, got 0", id="no channels"),
        pytest.param({"layers": 1.5}, "layers must be a whole number of at least 1, got 1.5", id="half a layer"),
        pytest.param({"kernel": 1}, "kernel must be a whole number of at least 2, got 1", id="it would see one byte"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EntropyModelConfig(**settings)
