"""Goal prediction: what is believed before anything is learned, what a wrong guess costs, and that watching helps."""

import math

import pytest
import torch

from ctm.diffusion.goal import GoalConfig, GoalPredictor, goal_loss

WIDTH, CONTEXT, GOALS = 6, 2, 4


def predictor(**options: object) -> GoalPredictor:
    torch.manual_seed(0)
    return GoalPredictor(GoalConfig(width=WIDTH, context=CONTEXT, goals=GOALS, hidden=12, **options))  # type: ignore[arg-type]  # as given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"goals": 0}, "goal.goals must be a whole number of at least 1, got 0", id="no goals"),
        pytest.param({"goals": 1}, "goal.goals must be at least 2 to choose from, got 1", id="no choice"),
        pytest.param({"kind": "wish"}, r"goal.kind must be one of \('classes', 'vector'\), got 'wish'", id="kind"),
        pytest.param({"context": -1}, "goal.context must be a whole number", id="negative context"),
    ],
)
def test_impossible_settings_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        GoalConfig(**{"width": WIDTH, "context": CONTEXT, "goals": GOALS, **options})


def test_who_has_learned_nothing_finds_every_goal_equally_likely():
    model, generator = predictor(), torch.Generator().manual_seed(1)
    seen = torch.randn(3, 5, WIDTH, generator=generator), torch.randn(3, 5, CONTEXT, generator=generator)
    prediction = model.follow(*seen)
    torch.testing.assert_close(model.believed(prediction), torch.full((3, 5, GOALS), 1 / GOALS))
    assert goal_loss(prediction, torch.tensor([0, 1, 3]), "classes").item() == pytest.approx(math.log(GOALS))
    torch.testing.assert_close(model.unknown(torch.randn(2, GOALS)), torch.full((2, GOALS), 1 / GOALS))
    assert not predictor(kind="vector").unknown(torch.ones(2, GOALS)).any()


@pytest.mark.parametrize(
    ("prediction", "goal", "kind", "loss"),
    [
        pytest.param([[0.0, math.log(3)]], [1], "classes", math.log(4 / 3), id="three to one, right"),
        pytest.param([[0.0, math.log(3)]], [0], "classes", math.log(4), id="three to one, wrong"),
        pytest.param([[[0.0, math.log(3)], [0.0, 0.0]]], [1], "classes", math.log(8 / 3) / 2, id="mean over ticks"),
        pytest.param([[1.0, 2.0]], [[1.0, 4.0]], "vector", 2.0, id="a point"),
        pytest.param([[[1.0, 2.0], [1.0, 4.0]]], [[1.0, 4.0]], "vector", 1.0, id="a point, over ticks"),
    ],
)
def test_what_a_guess_costs(prediction, goal, kind, loss):
    assert goal_loss(torch.tensor(prediction), torch.tensor(goal), kind).item() == pytest.approx(loss)


@pytest.mark.parametrize("kind", ["classes", "vector"])
def test_following_is_one_tick_after_another_and_rows_keep_to_themselves(kind):
    model, generator = predictor(kind=kind), torch.Generator().manual_seed(2)
    torch.nn.init.normal_(model.read.weight, generator=generator)
    activity, context = torch.randn(4, 3, WIDTH, generator=generator), torch.randn(4, 3, CONTEXT, generator=generator)
    with torch.no_grad():
        followed = model.follow(activity, context)
        for row in range(4):
            hidden = model.start(1)
            for tick in range(3):
                hidden, prediction = model(activity[row, tick, None], context[row, tick, None], hidden)
                torch.testing.assert_close(prediction[0], followed[row, tick], atol=1e-6, rtol=0)


def test_a_guess_gets_better_the_longer_it_is_watched():
    """Each tick shows the goal's number in noise of twice its size."""
    generator, model = torch.Generator().manual_seed(3), predictor()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)

    def watch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        goal = torch.randint(GOALS, (rows,), generator=generator)
        shown = torch.nn.functional.one_hot(goal, WIDTH).float().unsqueeze(1)
        activity = shown + torch.randn(rows, 12, WIDTH, generator=generator)
        return model.follow(activity, torch.zeros(rows, 12, CONTEXT)), goal

    for _ in range(100):
        optimiser.zero_grad()
        goal_loss(*watch(128), "classes").backward()
        optimiser.step()
    with torch.no_grad():
        predictions, goal = watch(1000)
    right = (predictions.argmax(-1) == goal.unsqueeze(1)).float().mean(0)
    assert right[0] > 1 / GOALS + 0.1, right
    assert right[3] > right[0] + 0.1, right
    assert right[-1] > right[3] + 0.1, right
