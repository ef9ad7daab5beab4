"""Consciousness: surprise wakes a thought, certainty puts it to sleep, and asleep it hardly takes anything in."""

from pathlib import Path

import pytest
import torch
from exported_part import check_exports
from torch import Tensor, nn

from ctm.diffusion.consciousness import ConsciousnessConfig, ConsciousnessController, attentive, surprise

CERTAIN, UNCERTAIN = torch.tensor([0.99]), torch.tensor([0.05])
NO_SURPRISE, SURPRISE = torch.tensor([0.0]), torch.tensor([0.5])


def _controller(**settings: float) -> ConsciousnessController:
    return ConsciousnessController(ConsciousnessConfig(**settings)).eval()


def _levels(controller: ConsciousnessController, level: Tensor, certainty: Tensor, news: Tensor) -> list[float]:
    """Ten ticks of it."""
    levels = []
    with torch.no_grad():
        for _ in range(10):
            level = controller(level, certainty, news)
            levels.append(float(level))
    return levels


@pytest.mark.parametrize(
    ("start", "certainty", "news", "ends"),
    [
        pytest.param(0.0, CERTAIN, SURPRISE, "awake", id="surprise wakes it, however certain it is"),
        pytest.param(0.0, UNCERTAIN, NO_SURPRISE, "awake", id="uncertainty wakes it"),
        pytest.param(1.0, CERTAIN, NO_SURPRISE, "asleep", id="certainty puts it to sleep"),
        pytest.param(1.0, UNCERTAIN, NO_SURPRISE, "awake", id="uncertain, it stays awake"),
        pytest.param(0.0, CERTAIN, NO_SURPRISE, "asleep", id="certain, it sleeps on"),
    ],
)
def test_what_wakes_a_thought_and_what_puts_it_to_sleep(start, certainty, news, ends):
    levels = _levels(_controller(), torch.tensor([start]), certainty, news)
    assert levels[-1] > 0.9 if ends == "awake" else levels[-1] < 0.4
    rises = ends == "awake" and start == 0.0
    falls = ends == "asleep" and start == 1.0
    if rises or falls:
        assert levels == sorted(levels, reverse=falls), "it goes one way"


def test_it_wakes_faster_than_it_falls_asleep():
    controller = _controller()
    waking = _levels(controller, torch.tensor([0.0]), UNCERTAIN, NO_SURPRISE)
    falling = _levels(controller, torch.tensor([1.0]), CERTAIN, NO_SURPRISE)
    assert sum(level < 0.5 for level in waking) < sum(level > 0.5 for level in falling)


def test_the_level_never_leaves_0_to_1():
    generator = torch.Generator().manual_seed(0)
    for wake, sleep in ((0.001, 0.999), (0.999, 0.999), (0.5, 0.1)):
        controller = _controller(wake=wake, sleep=sleep, sharpness=1e4)
        level = torch.rand(200, generator=generator).round(decimals=1)
        for _ in range(50):
            certainty = 3 * torch.randn(200, generator=generator)
            level = controller(level, certainty, torch.rand(200, generator=generator))
            assert ((level >= 0) & (level <= 1)).all()


def test_surprise_is_0_for_the_same_and_1_for_the_opposite():
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    orthogonal = torch.stack([x[:, 1], -x[:, 0], torch.zeros(4, 5)], dim=1)
    before = torch.stack([x[:, 0], x[:, 1], torch.zeros(4, 5)], dim=1)
    for now, was, expected in ((x, x, 0.0), (orthogonal, before, 0.5), (x, -x, 1.0), (x * 0, x * 0, 0.0)):
        torch.testing.assert_close(surprise(now, was), torch.full((4,), expected))


def test_asleep_the_input_hardly_moves_the_state():
    """The recurrence is a CTM's in small: the next state comes of what was found and the state before."""
    torch.manual_seed(0)
    cell = nn.GRUCell(6, 8)
    found, other, state = torch.randn(5, 6), torch.randn(5, 6), torch.randn(5, 8)

    def moved(level: float) -> float:
        levels = torch.full((5,), level)
        difference = cell(attentive(found, levels), state) - cell(attentive(other, levels), state)
        return float(difference.detach().norm())

    assert moved(0.0) == 0.0
    assert moved(0.02) < 0.05 * moved(1.0)
    assert [moved(level / 5) for level in range(6)] == sorted(moved(level / 5) for level in range(6))
    asleep = cell(attentive(found, torch.zeros(5)), state)
    assert (asleep - state).norm() > 0.1, "the state goes on by itself"


def test_its_settings_learn_and_it_draws_nothing():
    controller = ConsciousnessController(ConsciousnessConfig())
    level, certainty, news = torch.rand(20), torch.rand(20), torch.rand(20)
    torch.manual_seed(0)
    first = controller(level, certainty, news)
    torch.manual_seed(1)
    assert torch.equal(controller(level, certainty, news), first)
    certainty.requires_grad_()
    controller(level, certainty, news).sum().backward()
    assert all(setting.grad is not None and setting.grad != 0 for setting in controller.parameters())
    assert certainty.grad is not None
    assert certainty.grad.isfinite().all()
    assert certainty.grad.any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"wake": 1.0}, r"wake must be in \(0, 1\), got 1.0", id="wake"),
        pytest.param({"gain": 0.0}, "gain must be positive and finite, got 0.0", id="gain"),
        pytest.param({"start": 1.5}, r"start must be in \[0, 1\], got 1.5", id="start"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        ConsciousnessConfig(**settings)


def test_rows_stand_alone_and_it_exports(tmp_path: Path):
    controller = _controller()
    names = ["level", "certainty", "surprise"]
    check_exports(controller, lambda rows: tuple(torch.rand(rows) for _ in names), names, ["next"], tmp_path)
    given = tuple(torch.rand(9) for _ in names)
    expected = controller(*given).detach()
    alone = [controller(*(x[row : row + 1] for x in given)) for row in range(9)]
    torch.testing.assert_close(torch.cat(alone), expected)
