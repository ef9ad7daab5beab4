"""What gates and moves a thought's state, switched on: each trains, changes what is drawn, and fits or is refused."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exported_part import check_exports
from small_diffusion import CONTROL, CORE, DIFFUSION, noisy_rows, small_model
from test_ctm_training_diffusion import table
from torch import Tensor, nn

from ctm.diffusion.control import OTHER, Controlled, Outcome
from ctm.diffusion.goal import GoalPredictor, goal_loss
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.others_in_mind import Understood, unpacked
from ctm.diffusion.sampling import Samples, sample
from ctm.families import load_trained
from ctm.training.chance import Purpose, derived_seed, seed_everything
from ctm.training.config import RunConfig
from ctm.training.run import train
from ctm.training.settings import ConfigError, from_table

ROWS = 16
EMOTION, GOAL = {"width": 24, "emotions": 3, "hidden": 6}, {"width": 24, "context": 16, "goals": 10, "hidden": 6}
TABLES: dict[str, dict] = {
    "basal_ganglia": {"hidden": 8},
    "empathy": {"width": 24},
    "emotion": EMOTION,
    "goal": GOAL,
    "mirror": {"actions": 64, "emotion": EMOTION, "goal": GOAL},
}
LOSSES = {
    "basal_ganglia": {"value", "gate"},
    "empathy": {"empathy"},
    "emotion": set(),
    "goal": {"goal"},
    "mirror": {"goal", "selfless"},
}


def configured(folder: Path, switches: dict[str, dict]) -> RunConfig:
    changes = {
        "updates": 20,
        "diffusion": {"width": 16, "layers": 1, "heads": 2, **switches},
        "model": {"in_channels": 16, "input_shape": [16, 16], "attention_width": 16, "heads": 2},
    }
    return from_table(table(folder, **changes), source="test")


def fresh(config: RunConfig) -> EnhancedCTMDiffusion:
    """As a run makes it, before the first update."""
    assert config.diffusion is not None
    seed_everything(config.seed, Purpose.WEIGHTS)
    return EnhancedCTMDiffusion(config.model, config.diffusion, seed=derived_seed(config.seed, Purpose.PAIRS))


def trained(folder: Path, switches: dict[str, dict]) -> tuple[EnhancedCTMDiffusion, EnhancedCTMDiffusion]:
    """A model before and after 20 updates."""
    config = configured(folder, switches)
    assert train(config)
    model = load_trained(config.folder).model
    assert isinstance(model, EnhancedCTMDiffusion)
    return fresh(config), model


def draw(model: EnhancedCTMDiffusion) -> Samples:
    side = model.diffusion.side
    return sample(
        model.eval(),
        torch.arange(ROWS) % 4,
        lambda step: torch.randn(ROWS, side, side, generator=torch.Generator().manual_seed(step)),
        steps=6,
    )


def without(model: EnhancedCTMDiffusion, switch: str) -> EnhancedCTMDiffusion:
    """The same weights with one part cut out."""
    if switch == "basal_ganglia":
        model.control.ganglia = None
    else:
        setattr(model.control.others, switch, None)
    return model


@pytest.mark.parametrize("switch", TABLES)
def test_each_switch_alone_trains_all_its_weights_by_its_losses(switch, tmp_path):
    before, after = trained(tmp_path, {switch: TABLES[switch]})
    own = dict(before.control.named_parameters())
    assert own
    assert [name for name, weight in after.control.named_parameters() if torch.equal(weight, own[name])] == []
    torch.manual_seed(0)
    loss = after.train()(torch.rand(ROWS, 8, 8) * 2 - 1, torch.arange(ROWS) % 10)
    assert set(loss.losses) == {"bins"} | LOSSES[switch]
    assert all(torch.isfinite(value) for value in (loss.value, *loss.losses.values()))


@pytest.mark.parametrize("switch", CONTROL)
def test_each_switch_changes_what_is_drawn(switch):
    # Of weights drawn wide: after 20 updates a thought hardly guides at all.
    model = small_model(**{switch: CONTROL[switch]})
    whole = draw(model)
    cut = draw(without(model, switch))
    assert (whole.images - cut.images).abs().max() > 1e-4


def test_all_together_train_and_have_every_loss(tmp_path):
    before, after = trained(tmp_path, {"refine": True, **TABLES})
    still = dict(before.named_parameters())
    assert [name for name, weight in after.named_parameters() if torch.equal(weight, still[name])] == []
    torch.manual_seed(0)
    loss = after.train()(torch.rand(ROWS, 8, 8) * 2 - 1, torch.arange(ROWS) % 10)
    assert set(loss.losses) == {"bins"}.union(*LOSSES.values())
    assert torch.isfinite(loss.value)
    loss.value.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in after.parameters() if weight.grad is not None)


@pytest.mark.parametrize("switch", [name for name in CONTROL if name != "basal_ganglia"])
@torch.no_grad()
def test_where_there_is_no_other_only_ones_own_emotion_has_an_effect(switch):
    model = small_model(**{switch: CONTROL[switch]})
    noisy, level, label = noisy_rows(ROWS)
    nothing = model.nothing_fed(noisy)
    thought = model.think(noisy, level, label, nothing)
    state, certainty = thought.states[:, -1], thought.certainties[:, -1]
    plain = state[:, : model.control.state_width]
    alone = model.control(state, certainty, level, nothing).state
    assert torch.equal(alone, plain) == (switch != "emotion")
    # Every other row has a neighbour's thought to watch.
    other = model.control.hand_on(state.roll(1, 0))
    other[OTHER][::2] = 0
    met = model.control(state, certainty, level, other).state
    assert torch.equal(met[::2], alone[::2])
    assert ((met[1::2] - alone[1::2]).abs().amax(-1) > 1e-4).all()
    assert torch.equal(met[:, : CORE.out_pairs], plain[:, : CORE.out_pairs]), "none of them touches the synchronisation"


@torch.no_grad()
def test_a_gate_holds_whole_channels_while_learning_and_is_the_same_every_time_after():
    model = small_model(basal_ganglia=CONTROL["basal_ganglia"])
    noisy, level, label = noisy_rows(ROWS)
    thought = model.think(noisy, level, label)
    state, certainty = thought.states[:, -1], thought.certainties[:, -1]
    torch.manual_seed(3)
    found, again = (model.control(state, certainty, level, {}) for _ in range(2))
    assert torch.equal(found.state, again.state)
    ratio = found.state[:, : CORE.out_pairs] / state[:, : CORE.out_pairs]
    torch.testing.assert_close(ratio, found.gated.gate)
    learning = model.train().control(state, certainty, level, {})
    assert set(learning.passed.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(learning.state[:, : CORE.out_pairs], state[:, : CORE.out_pairs] * learning.passed)
    assert torch.equal(learning.state[:, CORE.out_pairs :], state[:, CORE.out_pairs :])


class Steered(nn.Module):
    """All control of a state, as a function of tensors alone."""

    def __init__(self, model: EnhancedCTMDiffusion) -> None:
        super().__init__()
        self.control = model.control

    def forward(self, state: Tensor, certainty: Tensor, level: Tensor, other: Tensor) -> Tensor:
        return self.control(state, certainty, level, {OTHER: other}).state


def test_all_together_export_for_any_number_of_rows(tmp_path):
    model = small_model(**CONTROL)

    def examples(rows: int) -> tuple[Tensor, ...]:
        noisy, level, label = noisy_rows(rows)
        with torch.no_grad():
            thought = model.think(noisy, level, label)
        other = model.control.hand_on(thought.states[:, 0])[OTHER]
        other[0] = 0
        return thought.states[:, -1], thought.certainties[:, -1], level, other

    check_exports(Steered(model), examples, ["state", "certainty", "level", "other"], ["steered"], tmp_path)


def test_rows_without_a_thought_teach_the_gate_nothing_and_rows_with_one_do():
    for share, taught in ((1.0, False), (0.0, True)):
        model = small_model(basal_ganglia=CONTROL["basal_ganglia"], base_share=share).train()
        torch.manual_seed(5)
        loss = model(torch.rand(32, 6, 6) * 2 - 1, torch.arange(32) % 4)
        loss.losses["gate"].backward(retain_graph=True)
        loss.losses["value"].backward()
        assert any(weight.grad is not None and weight.grad.any() for weight in model.control.parameters()) == taught
        assert all(weight.grad is None or not weight.grad.any() for weight in model.thinker.parameters())


def test_the_reward_of_the_gate_is_what_guiding_gains():
    model, (noisy, level, label) = small_model(basal_ganglia=CONTROL["basal_ganglia"]).train(), noisy_rows(ROWS)
    thought, everyone = model.think(noisy, level, label), torch.ones(ROWS, dtype=torch.bool)
    controlled = model.control(thought.states[:, -1], thought.certainties[:, -1], level, {})
    error = torch.tensor([0.0, 3.0]).repeat(ROWS // 2)
    losses = model.control.losses(controlled, Outcome(label, everyone, error, base_error=torch.ones(ROWS)))
    surprise = 1 - error - controlled.gated.reward
    torch.testing.assert_close(losses["value"], surprise.square().mean())
    (slope,) = torch.autograd.grad(losses["gate"], controlled.gated.gate)
    likelier = torch.where(controlled.passed > 0, 1.0, -1.0)
    assert torch.equal(-slope.sign(), surprise.sign()[:, None] * likelier), "what was done, where it helped"


def test_to_help_is_to_bring_the_others_estimate_nearer_the_clean_image():
    control, random = small_model(mirror=CONTROL["mirror"]).control, torch.Generator().manual_seed(0)
    clean, other = torch.randn(2, ROWS, 6, 6, generator=random)
    everyone, label = torch.ones(ROWS, dtype=torch.bool), torch.zeros(ROWS, dtype=torch.int64)
    understood = Understood(everyone, None, (), (clean - other).flatten(1))

    def loss(estimate: Tensor) -> float:
        came = Outcome(label, everyone, label.float(), clean=clean, estimate=estimate, other_estimate=other)
        return control.losses(Controlled(label, understood=understood), came)["selfless"].item()

    found = [loss(other + share * (clean - other)) for share in (-1.0, 0.0, 0.5, 1.0)]
    assert found == pytest.approx([1.0, 1.0, 0.25, 0.0], abs=1e-5), "the square of half of an error is a quarter"


def test_who_is_watched_has_more_noise_and_where_there_is_the_most_nobody_is():
    level = torch.arange(DIFFUSION.levels).repeat(200)
    torch.manual_seed(0)
    other, watches = small_model(goal=CONTROL["goal"])._others(level)
    last = level == DIFFUSION.levels - 1
    assert (other[~last] > level[~last]).all()
    assert other[level == 5].unique().tolist() == list(range(6, DIFFUSION.levels))
    assert not watches[last].any()
    assert 0.45 < watches[~last].float().mean() < 0.55


def test_what_another_thought_was_asked_for_can_be_told_from_its_traces():
    model = small_model(goal=CONTROL["goal"])
    noisy, level, label = noisy_rows(400)
    with torch.no_grad():
        other = unpacked(model.control.hand_on(model.think(noisy, level, label).states[:, -1])[OTHER])
    torch.manual_seed(0)
    watcher, where = GoalPredictor(CONTROL["goal"]), torch.zeros(400, CORE.memory, 16)
    optimiser = torch.optim.Adam(watcher.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        goal_loss(watcher.follow(other.trace[:300].transpose(1, 2), where[:300]), label[:300], "classes").backward()
        optimiser.step()
    guess = watcher.follow(other.trace[300:].transpose(1, 2), where[300:])[:, -1].argmax(-1)
    assert (guess == label[300:]).float().mean() > 0.4, "chance is a quarter"


GOAL_OF = CONTROL["goal"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"emotion": replace(CONTROL["emotion"], width=9)},
            "diffusion.emotion.width must be 24, the neurons of model.width, got 9",
            id="emotion",
        ),
        pytest.param(
            {"empathy": replace(CONTROL["empathy"], width=9)},
            "diffusion.empathy.width must be 24, the neurons of model.width, got 9",
            id="empathy",
        ),
        pytest.param(
            {"goal": replace(GOAL_OF, goals=7)},
            "diffusion.goal.goals must be 4, the classes of diffusion.classes, got 7",
            id="goals",
        ),
        pytest.param(
            {"goal": replace(GOAL_OF, context=7)},
            "diffusion.goal.context must be 16, the level's code of diffusion.width, got 7",
            id="context",
        ),
        pytest.param(
            {"goal": replace(GOAL_OF, kind="vector")},
            "diffusion.goal.kind must be 'classes', what an image can be asked for, got 'vector'",
            id="kind",
        ),
        pytest.param(
            {"mirror": replace(CONTROL["mirror"], actions=9)},
            "diffusion.mirror.actions must be 36, the pixels of diffusion.side squared, got 9",
            id="actions",
        ),
        pytest.param(
            {"mirror": replace(CONTROL["mirror"], goal=replace(GOAL_OF, goals=5))},
            "diffusion.mirror.goal.goals must be 4",
            id="goals in the mirror",
        ),
        *(
            pytest.param(
                {"guided": False, name: part}, f"diffusion.{name} needs a thought, got guided = false", id=f"no {name}"
            )
            for name, part in CONTROL.items()
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_both_sides(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EnhancedCTMDiffusion(CORE, replace(DIFFUSION, **settings))


@pytest.mark.parametrize("switch", TABLES)
def test_a_table_switches_it_on_and_comes_back_from_a_checkpoint_and_unknown_keys_are_named(switch, tmp_path):
    config = configured(tmp_path, {switch: TABLES[switch]}).diffusion
    assert config is not None
    assert getattr(config, switch) is not None
    assert type(config).from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match=rf"unknown key diffusion\.{switch}\.widht"):
        configured(tmp_path, {switch: {**TABLES[switch], "widht": 3}})
