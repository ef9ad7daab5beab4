"""Two agents: that the world hides what it says it hides, and that each signal about another's mind earns its name."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import two_agents as command
from ctm.diffusion.companion import Companion, CompanionConfig, lesioned, train_companion
from ctm.diffusion.two_agents import Episodes, WorldConfig, best_guess, directions, meet, progress

WORLD = WorldConfig()
CHANCE = 1 / WORLD.goals
UPDATES = 100


def new(rows: int = 2000) -> Episodes:
    return meet(WORLD, rows, torch.Generator().manual_seed(12345))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"ticks": 0}, "world.ticks must be a whole number of at least 1, got 0", id="no ticks"),
        pytest.param({"wander": 0.0}, "world.wander must be positive and finite, got 0.0", id="no doubt"),
        pytest.param({"gains": (1.0, 1.0)}, "world.gains must be positive, the second larger", id="no difference"),
    ],
)
def test_impossible_worlds_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        WorldConfig(**options)


def test_chance_comes_from_the_generator_alone():
    first, again, other = new(5), new(5), meet(WORLD, 5, torch.Generator().manual_seed(1))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first.activity, other.activity)


def test_one_move_tells_little_of_the_goal_and_all_of_them_much():
    episodes = new()
    right = (best_guess(WORLD, episodes.moves) == episodes.goal.unsqueeze(1)).float().mean(0)
    assert CHANCE < right[0] < 0.35 < 0.55 < right[-1] < 0.95, right


@pytest.mark.parametrize(
    ("push", "calm", "upset"),
    [
        pytest.param(0.0, 0.0, 0.0, id="nothing"),
        pytest.param(0.5, 1.0, 1 / 3, id="what a calm one needs"),
        pytest.param(1.0, 0.0, 2 / 3, id="past a calm one's goal"),
        pytest.param(1.5, -1.0, 1.0, id="what an upset one needs"),
        pytest.param(-0.5, -1.0, -1 / 3, id="away"),
    ],
)
def test_what_a_push_does(push, calm, upset):
    episodes = new(50)
    pushes = push * directions(WORLD)[episodes.goal]
    expected = torch.where(episodes.upset == 1, upset, calm)
    torch.testing.assert_close(progress(WORLD, episodes, pushes), expected, atol=1e-6, rtol=0)
    by_tick = progress(WORLD, episodes, pushes.unsqueeze(1).expand(-1, 3, -1))
    torch.testing.assert_close(by_tick, expected.unsqueeze(1).expand(-1, 3), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def trained() -> Companion:
    return train_companion(CompanionConfig(), seed=0, updates=UPDATES)


@pytest.fixture(scope="module")
def found(trained):
    """What is left of the trained agent without each signal, and of one that is never rewarded for helping."""
    episodes = new()
    arms = {name: command.measure(lesioned(trained, name), episodes) for name in ("goal", "emotion", "resonance")}
    indifferent = train_companion(replace(trained.config, selfless=False), seed=0, updates=UPDATES)
    return arms | {"all": command.measure(trained, episodes), "selfless": command.measure(indifferent, episodes)}


def test_the_goal_is_known_the_better_the_longer_one_watches(found):
    right = found["all"]["goal_by_tick"]
    assert CHANCE < right[0] < right[4] < right[-1]
    assert right[-1] > 3 * CHANCE, "well above chance"


def test_the_emotion_state_tells_calm_from_upset(found):
    assert found["all"]["probe"] > 0.9


def test_empathy_is_greater_where_both_feel_the_same(trained):
    felt = command.felt_alike(trained, new())
    assert felt["same"] > felt["different"] + 0.02, felt


def test_traces_fall_in_step_only_where_the_own_state_is_drawn(found):
    drawn, free = found["all"]["resonance_by_tick"], found["resonance"]["resonance_by_tick"]
    assert drawn[0] == pytest.approx(free[0], abs=1e-5), "a trace of one value has only a sign"
    assert drawn[-1] > drawn[4] > drawn[0] + 0.1
    assert drawn[-1] > 0.3
    assert abs(free[-1]) < 0.05


def test_help_brings_the_other_nearer_and_only_where_helping_was_rewarded(found):
    assert found["all"]["progress"] > 0.3
    assert found["selfless"]["progress"] < 0.05


def test_help_is_rewarded_and_hindering_is_not(trained):
    by_angle = command.reward_by_angle(trained, new())
    rewards = {round(angle): reward for angle, reward, _ in by_angle}
    assert rewards[0] == max(rewards.values()) > 0.2
    assert [reward for angle, reward in rewards.items() if abs(angle) >= 90] == [0.0] * 14
    assert [rewarded for *_, rewarded in by_angle if rewarded] == []


@pytest.mark.parametrize(
    ("missing", "lost", "kept"),
    [
        pytest.param("goal", {"direction": CHANCE}, ("goal", "probe", "resonance"), id="the goal"),
        pytest.param("emotion", {"sizes": 1.0}, ("goal", "direction", "probe", "resonance"), id="emotions"),
        pytest.param("resonance", {"resonance": 0.0}, ("goal", "direction", "probe"), id="synaptic empathy"),
        pytest.param("selfless", {"direction": CHANCE}, ("goal", "resonance"), id="the selfless reward"),
    ],
)
def test_who_loses_a_signal_loses_its_effect_and_no_other(found, missing, lost, kept):
    for name, nothing in lost.items():
        assert abs(found[missing][name] - nothing) < 0.15, name
        assert found["all"][name] - nothing > 0.25, name
    for name in kept:
        assert found[missing][name] == pytest.approx(found["all"][name], abs=0.06), name


def test_the_command_measures_saves_and_draws(tmp_path, capsys):
    options = ["--seeds", "3", "--updates", "2", "--rows", "60"]
    assert command.main([*options, "--save", str(tmp_path / "results"), "--plot", str(tmp_path / "two.png")]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    (path,) = (tmp_path / "results").iterdir()
    assert json.loads(path.read_text()) == document
    (run,) = document["runs"]
    assert list(run["arms"]) == list(command.ARMS)
    assert run["resonance_by_angle"][0] == pytest.approx([0, 1], abs=1e-5)
    assert (tmp_path / "two.png").stat().st_size > 1000
