"""Mirror neurons: what each signal hangs on, what is rewarded, and that a tick of them is served as it was trained."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from ctm.diffusion.emotion import EmotionConfig
from ctm.diffusion.goal import GoalConfig
from ctm.diffusion.mirror import (
    Minds,
    MirrorConfig,
    MirrorNeuronLayer,
    empathy,
    selfless_loss,
    selfless_reward,
)
from ctm.diffusion.synaptic_empathy import SynapticEmpathy, SynapticEmpathyConfig
from export.onnx_graph import write_onnx
from export.torchscript import quiet, write_torchscript

WIDTH, CONTEXT, GOALS, EMOTIONS, ACTIONS, MEMORY = 10, 2, 4, 3, 2, 5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(**options: object) -> MirrorNeuronLayer:
    """One of random weights, the goal's last ones too, which begin at zero."""
    torch.manual_seed(0)
    emotion = EmotionConfig(width=WIDTH, emotions=EMOTIONS, hidden=6)
    goal = GoalConfig(width=WIDTH, context=CONTEXT, goals=GOALS, hidden=6)
    made = MirrorNeuronLayer(MirrorConfig(emotion=emotion, goal=goal, actions=ACTIONS, **options))  # type: ignore[arg-type]  # as given
    nn.init.normal_(made.goal.read.weight)
    return made.eval()


def respond(made: MirrorNeuronLayer, *, rows: int = 6, own: int = 1, other: int = 2, goal: int = 3):
    """What a layer makes of states that are drawn from these seeds."""
    emotions = draw(rows, EMOTIONS, seed=own).tanh(), draw(rows, EMOTIONS, seed=other).tanh()
    with torch.no_grad():
        return made.respond(draw(rows, WIDTH), *emotions, draw(rows, GOALS, seed=goal))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"actions": 0}, "mirror.actions must be a whole number of at least 1, got 0", id="no actions"),
        pytest.param({"strength": 0.0}, "mirror.strength must be positive and finite, got 0.0", id="no strength"),
        pytest.param({"strength": float("inf")}, "mirror.strength must be positive and finite", id="too strong"),
        pytest.param({"goal": GoalConfig(width=7, context=1, goals=2)}, "of one width, got 10 and 7", id="widths"),
    ],
)
def test_impossible_settings_are_refused_by_name(options, message):
    known = {"goal": GoalConfig(width=WIDTH, context=1, goals=2), "actions": 2}
    with pytest.raises(ValueError, match=message):
        MirrorConfig(emotion=EmotionConfig(width=WIDTH), **(known | options))


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        pytest.param([0.5, -0.5], [0.5, -0.5], 1.0, id="the same"),
        pytest.param([0.0, 0.0], [0.0, 0.0], 1.0, id="both at rest"),
        pytest.param([0.5, -0.5], [0.1, -0.5], 0.9, id="a little apart"),
        pytest.param([1.0, -1.0], [-1.0, 1.0], 0.0, id="opposite"),
    ],
)
def test_empathy_is_how_nearly_two_states_agree(own, other, expected):
    own, other = torch.tensor([own]), torch.tensor([other])
    assert empathy(own, other).item() == pytest.approx(expected)
    assert torch.equal(empathy(own, other), empathy(other, own))


@pytest.mark.parametrize(
    ("action", "progress", "reward"),
    [
        pytest.param([1.0, 0.0], 1.0, 1.0, id="as one would help, all the way"),
        pytest.param([5.0, 0.0], 0.5, 0.5, id="size counts by what it does"),
        pytest.param([1.0, 1.0], 1.0, 0.5**0.5, id="half a right angle off"),
        pytest.param([1.0, 0.0], -0.3, 0.0, id="meant well, but the goal is further away"),
        pytest.param([1.0, 0.0], 0.0, 0.0, id="meant well, to no effect"),
        pytest.param([-1.0, 0.0], 0.8, 0.0, id="help by accident"),
        pytest.param([-1.0, 0.0], -0.8, 0.0, id="hindering is not rewarded twice"),
        pytest.param([0.0, 0.0], 0.8, 0.0, id="doing nothing"),
    ],
)
def test_what_is_rewarded(action, progress, reward):
    found = selfless_reward(torch.tensor([action]), torch.tensor([[2.0, 0.0]]), torch.tensor([progress]))
    assert found.item() == pytest.approx(reward, abs=1e-6)
    assert selfless_loss(found).item() == pytest.approx(1 - reward, abs=1e-6)


def test_the_loss_turns_an_action_towards_what_helps():
    goal, action, assistance = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.3, 0.4]]), torch.tensor([[0.5, -0.2]])
    rewards = []
    for _ in range(200):
        action, assistance = action.detach().requires_grad_(), assistance.detach().requires_grad_()
        reward = selfless_reward(action, assistance, 1 - (goal - action).norm(dim=-1))
        slopes = torch.autograd.grad(selfless_loss(reward), (action, assistance))
        action, assistance = action - 0.02 * slopes[0], assistance - 0.02 * slopes[1]
        rewards.append(reward.item())
    assert rewards[0] < 0.4
    assert rewards[-1] > 0.95


def test_how_much_to_help_follows_the_emotion_and_which_way_the_goal():
    base, felt, meant = respond(layer()), respond(layer(), other=7), respond(layer(), goal=8)
    directions = [nn.functional.normalize(found.assistance, dim=-1) for found in (base, felt, meant)]
    torch.testing.assert_close(directions[0], directions[1], atol=1e-5, rtol=0)
    assert ((base.assistance - felt.assistance).abs().amax(-1) > 1e-3).all()
    assert ((directions[0] - directions[2]).abs().amax(-1) > 1e-3).all()
    assert torch.equal(base.empathy, meant.empathy)


def test_a_signal_that_is_not_heeded_has_no_influence_and_is_followed_all_the_same():
    deaf, blind = layer(heeds_emotion=False), layer(heeds_goal=False)
    for first, second in ((respond(deaf), respond(deaf, own=5, other=6)), (respond(blind), respond(blind, goal=9))):
        assert torch.equal(first.assistance, second.assistance)
        assert torch.equal(first.state, second.state)
    assert not torch.equal(respond(deaf).assistance, respond(deaf, goal=9).assistance)
    assert not torch.equal(respond(blind).assistance, respond(blind, other=9).assistance)
    seen = draw(3, WIDTH), draw(3, WIDTH, seed=1), draw(3, CONTEXT)
    with torch.no_grad():
        understood = [made(*seen, made.start(3)) for made in (layer(), deaf, blind)]
    for other in understood[1:]:
        assert torch.equal(other.minds.other_emotion, understood[0].minds.other_emotion)
        assert torch.equal(other.goal, understood[0].goal)


@pytest.mark.parametrize("strength", [0.1, 2.0])
def test_the_own_state_is_moved_and_never_by_more_than_the_strength(strength):
    made = layer(strength=strength)
    nn.init.normal_(made.lean.weight, std=100.0)
    moved = (respond(made).state - draw(6, WIDTH)).abs()
    assert moved.max() <= strength + 1e-6
    assert moved.max() > 0.9 * strength


def test_what_would_be_rewarding_does_not_colour_what_is_believed():
    made = layer()
    found = made(draw(4, WIDTH), draw(4, WIDTH, seed=1), draw(4, CONTEXT), made.start(4))
    action, assistance = found.response.state[:, :ACTIONS], found.response.assistance
    selfless_loss(selfless_reward(action, assistance, torch.ones(4))).backward()
    assert [name for name, weight in made.goal.named_parameters() if weight.grad is not None] == []
    for weight in (made.direction.weight, made.amount.weight, made.emotion.cell.weight_ih, made.lean.weight):
        assert weight.grad is not None
        assert weight.grad.any()


class Tick(nn.Module):
    """Synaptic empathy and mirror neurons for one tick, with tensors in and out, as a program would run them."""

    names = ("own", "observed", "context", "own_emotion", "other_emotion", "goal_hidden")
    results = ("own_emotion_next", "other_emotion_next", "goal_hidden_next", "goal", "empathy", "assistance", "state")

    def __init__(self) -> None:
        super().__init__()
        self.synaptic = SynapticEmpathy(SynapticEmpathyConfig(width=WIDTH, measure="correlation")).eval()
        self.mirror = layer()

    def forward(
        self, own: Tensor, observed: Tensor, context: Tensor, own_emotion: Tensor, other_emotion: Tensor, goal: Tensor
    ) -> tuple[Tensor, ...]:
        drawn = own[..., -1] + self.synaptic(own, observed).modulation
        found = self.mirror(drawn, observed[..., -1], context, Minds(own_emotion, other_emotion, goal))
        return *found.minds, found.goal, *found.response

    @staticmethod
    def inputs(rows: int, seed: int) -> tuple[Tensor, ...]:
        shapes = [(WIDTH, MEMORY), (WIDTH, MEMORY), (CONTEXT,), (EMOTIONS,), (EMOTIONS,), (6,)]
        return tuple(draw(rows, *shape, seed=seed + place) for place, shape in enumerate(shapes))


def test_a_rows_tick_does_not_depend_on_its_company():
    tick, inputs = Tick(), Tick.inputs(7, seed=3)
    with torch.no_grad():
        together = tick(*inputs)
        alone = [tick(*(value[row, None] for value in inputs)) for row in range(7)]
    for values, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(values, torch.cat(parts), atol=1e-6, rtol=0)


def test_halves_stay_close_to_full_precision():
    tick, inputs = Tick(), Tick.inputs(5, seed=4)
    with torch.no_grad():
        full = tick(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            halves = tick(*inputs)
    for exact, rounded in zip(full, halves, strict=True):
        torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


def test_both_exports_agree_for_any_number_of_rows(tmp_path: Path):
    tick = Tick().eval()
    write_onnx(tick, Tick.inputs(3, seed=5), Tick.names, Tick.results, tmp_path / "tick.onnx")
    write_torchscript(tick, Tick.inputs(3, seed=5), tmp_path / "tick.ts")
    session = ort.InferenceSession(tmp_path / "tick.onnx", providers=["CPUExecutionProvider"])
    with quiet():
        script = torch.jit.load(tmp_path / "tick.ts")
    for rows in (1, 2, 9):
        inputs = Tick.inputs(rows, seed=6)
        with torch.no_grad():
            expected, traced = tick(*inputs), script(*inputs)
        served = session.run(None, {name: value.numpy() for name, value in zip(Tick.names, inputs, strict=True)})
        for name, right, one, other in zip(Tick.results, expected, served, traced, strict=True):
            np.testing.assert_allclose(one, right.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)
            np.testing.assert_allclose(other.numpy(), right.numpy(), atol=1e-5, rtol=1e-5, err_msg=name)
