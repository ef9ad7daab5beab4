"""Basal ganglia: gates that learn by reward what to let through, and a reward that is expected once it can be."""

from pathlib import Path

import pytest
import torch
from exported_part import check_exports
from torch import Tensor, nn

from ctm.diffusion.basal_ganglia import BasalGanglia, dopamine, gate_loss, let_through, value_loss


def _situations(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Thoughts, contexts that say which of two channels is the harmful one (0 or 1), and actions of 3 channels."""
    thought, action = torch.randn(rows, 6, generator=generator), torch.randn(rows, 3, generator=generator)
    thought[:, :2] = 1.0
    return thought, torch.eye(2)[torch.randint(2, (rows,), generator=generator)], action


def _reward(passed: Tensor, context: Tensor) -> Tensor:
    """1 for the useful channel, -1 for the harmful one, nothing for the third."""
    return (passed[:, :2] * (1 - 2 * context)).sum(-1)


def test_a_gate_trained_with_reward_holds_what_harms_and_passes_what_serves():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    ganglia = BasalGanglia(6, 2, 3)
    optimiser = torch.optim.Adam(ganglia.parameters(), lr=0.01)
    for _ in range(250):
        thought, context, action = _situations(64, generator)
        gated = ganglia(thought, context, action)
        passed = let_through(gated.gate, torch.rand(64, 3, generator=generator))
        reward = _reward(passed, context)
        loss = gate_loss(gated.gate, passed, dopamine(reward, gated.reward)) + value_loss(reward, gated.reward)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    thought, context, action = _situations(200, generator)
    gated = ganglia(thought, context, action)
    harmful = gated.gate[:, :2].masked_select(context.bool())
    useful = gated.gate[:, :2].masked_select(~context.bool())
    assert harmful.mean() < 0.15, f"harmful channels pass {harmful.mean():.2f}"
    assert useful.mean() > 0.85, f"useful channels pass {useful.mean():.2f}"
    torch.testing.assert_close(gated.action, action * gated.gate)


def test_dopamine_fades_as_reward_becomes_predictable_and_returns_when_it_changes():
    torch.manual_seed(0)
    ganglia = BasalGanglia(6, 2, 3)
    optimiser = torch.optim.Adam(ganglia.parameters(), lr=0.02)
    thought, context, action = _situations(32, torch.Generator().manual_seed(0))
    # By context, which is there to be seen before the reward is.
    reward = 1.0 + context[:, 0]

    def learn(reward: Tensor, updates: int) -> list[Tensor]:
        errors = []
        for _ in range(updates):
            expected = ganglia(thought, context, action).reward
            errors.append(dopamine(reward, expected).detach())
            optimiser.zero_grad()
            value_loss(reward, expected).backward()
            optimiser.step()
        return errors

    first = learn(reward, 120)
    assert first[0].mean() > 0.8, "an unexpected reward is felt"
    assert first[-1].abs().max() < 0.1, "an expected one is not"
    omitted = learn(torch.zeros(32), 120)
    assert omitted[0].mean() < -1.3, "one that fails to come is felt as a loss"
    assert omitted[-1].abs().max() < 0.1


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_gates_are_in_0_to_1_and_their_loss_finite(scale):
    torch.manual_seed(0)
    ganglia = BasalGanglia(6, 2, 3)
    gated = ganglia(*(scale * x for x in _situations(50, torch.Generator().manual_seed(0))))
    assert ((gated.gate >= 0) & (gated.gate <= 1)).all()
    for passed in (torch.zeros(50, 3), torch.ones(50, 3)):
        assert gate_loss(gated.gate, passed, torch.ones(50)).isfinite()


def test_a_fresh_gate_is_nearly_open_and_go_and_nogo_oppose_each_other():
    torch.manual_seed(0)
    ganglia = BasalGanglia(6, 2, 3)
    situations = _situations(50, torch.Generator().manual_seed(0))
    fresh = ganglia(*situations).gate
    assert 0.7 < fresh.mean() < 0.85
    for way, sign in ((ganglia.go, 1), (ganglia.nogo, -1)):
        assert isinstance(way, nn.Sequential)
        with torch.no_grad():
            way[-1].bias += 1.0
            assert (sign * (ganglia(*situations).gate - fresh) > 0).all()
            way[-1].bias -= 1.0


def test_the_losses_teach_the_gate_and_the_expectation_apart():
    ganglia = BasalGanglia(6, 2, 3)
    gated = ganglia(*_situations(8, torch.Generator().manual_seed(0)))
    gate_loss(gated.gate, torch.ones(8, 3), dopamine(torch.ones(8), gated.reward)).backward()
    assert ganglia.value[0].weight.grad is None, "dopamine is a constant to the gate"
    assert ganglia.go[0].weight.grad.any()
    assert ganglia.context.weight.grad.any()


def test_rows_stand_alone_and_it_exports(tmp_path: Path):
    torch.manual_seed(0)
    ganglia = BasalGanglia(6, 2, 3).eval()
    generator = torch.Generator().manual_seed(0)
    names = ["thought", "context", "action"]
    check_exports(ganglia, lambda rows: _situations(rows, generator), names, ["gated", "gate", "reward"], tmp_path)
    given = _situations(7, generator)
    expected = [result.detach() for result in ganglia(*given)]
    for row in range(7):
        alone = ganglia(*(x[row : row + 1] for x in given))
        for ours, one in zip(expected, alone, strict=True):
            torch.testing.assert_close(one[0], ours[row])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ganglia(*given).gate.float(), expected[1], atol=0.02, rtol=0.02)
