"""Choosing neurons: each rule prefers what it says, on activities that were made so; pairs are valid, and they stay."""

from collections.abc import Callable

import pytest
import torch
from tiny_bundle import tiny_inputs, tiny_model
from torch import Tensor

from ctm.checkpoint import Checkpoint, load_model, write_checkpoint
from ctm.diffusion.neuron_activity import NeuronActivity
from ctm.diffusion.neuron_rules import RULES, of_neurons
from ctm.diffusion.neuron_selection import (
    SelectionConfig,
    after_update,
    choose_neurons,
    choose_pairs,
    install,
    overheard,
    select_and_freeze,
    select_by,
)
from ctm.program import Encode, Tick, pack_state
from ctm.sync import select_pairs

ROWS, TICKS, NEURONS = 96, 12, 12
PLANTED = [2, 5, 7, 10]
OTHERS = [neuron for neuron in range(NEURONS) if neuron not in PLANTED]


class Made:
    """An activity in which the planted neurons do what a rule looks for, and the others what it should pass over."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.post = self.noise(ROWS, TICKS, NEURONS)
        self.targets: Tensor | None = None
        self.losses: Tensor | None = None

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def observed(self, keep: float = 1.0) -> NeuronActivity:
        activity = NeuronActivity(NEURONS, 0 if self.targets is None else self.targets.shape[1], keep=keep)
        activity.observe(self.post, self.targets, self.losses)
        return activity


def with_targets(made: Made) -> None:
    """They go with the target, one of them against it."""
    made.targets = made.noise(ROWS, 2)
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0])
    made.post[..., PLANTED] += 2 * signs * made.targets[:, :1, None]


def together(made: Made) -> None:
    """They follow one signal that nobody told of; the others are as loud, each for itself."""
    made.post[..., PLANTED] += 2 * made.noise(ROWS, TICKS, 1)
    made.post[..., OTHERS] *= 5**0.5


def changing(made: Made) -> None:
    """They change from tick to tick; the others are as loud and stay as they are."""
    made.post[..., OTHERS] = made.noise(ROWS, 1, len(OTHERS)) + 0.1 * made.post[..., OTHERS]


def winning(made: Made) -> None:
    """At any tick one of them is the loudest."""
    winner = torch.randint(len(PLANTED), (ROWS, TICKS), generator=made.generator)
    made.post[..., PLANTED] += 4 * torch.eye(len(PLANTED))[winner]


def seldom(made: Made) -> None:
    """They are active at a tenth of the ticks; of the others half never and half always."""
    made.post = torch.zeros(ROWS, TICKS, NEURONS)
    made.post[..., OTHERS[::2]] = 1.5
    pulses = torch.rand(ROWS, TICKS, len(PLANTED), generator=made.generator) < 0.1
    made.post[..., PLANTED] = 3.0 * pulses


def fit(made: Made) -> None:
    """They are loud and varied; the others are one or the other."""
    made.post[..., PLANTED] *= 3
    made.post[..., OTHERS[::2]] = 2.0
    made.post[..., OTHERS[1::2]] *= 0.5


def critical(made: Made) -> None:
    """They hand one spike on; the others burst and fall silent, or set off three."""
    made.post = torch.zeros(ROWS, TICKS, NEURONS)
    made.post[:, 0, OTHERS[:4]] = 1
    made.post[:, 2, OTHERS[4]] = 1
    made.post[:, 3, OTHERS[5:]] = 1
    for tick, neuron in enumerate([*PLANTED, *PLANTED[:2]], start=6):
        made.post[:, tick, neuron] = 1


def good_at_most(made: Made) -> None:
    """They change, go with the target and are seldom active; the others hum."""
    seldom(made)
    made.targets = made.noise(ROWS, 1).sign()
    made.post[..., PLANTED] *= made.targets[:, :, None]
    made.post[..., OTHERS] += 0.05 * made.noise(ROWS, TICKS, len(OTHERS))


def loud(made: Made) -> None:
    """They are sixteen times as loud."""
    made.post[..., PLANTED] *= 16


def good_when_loud(made: Made) -> None:
    """Rows go well when they are loud, and badly when one of the others is."""
    effort = torch.rand(ROWS, 2, generator=made.generator)
    made.losses = 1 - effort[:, 0] + effort[:, 1]
    made.post[..., PLANTED] *= 4 * effort[:, :1, None]
    made.post[..., OTHERS[0]] *= 4 * effort[:, 1:]


def telling_classes(made: Made) -> None:
    """Their mean is another one for each of three classes, in no order that a line could follow."""
    classes = torch.arange(ROWS) % 3
    made.targets = torch.eye(3)[classes]
    means = torch.tensor([[1.5, -1.5, 0.0], [0.0, 1.5, 0.0], [-1.5, 1.5, -1.5], [1.5, 1.5, -1.5]])
    made.post[..., PLANTED] += means[:, classes].T[:, None]


CASES = [
    pytest.param("bio-hebbian", with_targets, id="hebbian: with the targets"),
    pytest.param("bio-hebbian", together, id="hebbian: with each other"),
    pytest.param("bio-plasticity", changing, id="plasticity: what changes"),
    pytest.param("bio-competitive", winning, id="competitive: what wins"),
    pytest.param("bio-homeostatic", seldom, id="homeostatic: what is near the target rate"),
    pytest.param("bio-evolutionary", fit, id="evolutionary: what is fit"),
    pytest.param("bio-criticality", critical, id="criticality: what hands on as much as it got"),
    pytest.param("bio-multi-objective", good_at_most, id="multi-objective: what is good at most"),
    pytest.param("adaptive-random", loud, id="adaptive random: what is loud"),
    pytest.param("performance-guided", good_when_loud, id="performance-guided: what goes with little loss"),
    pytest.param("task-aware", telling_classes, id="task-aware: what tells classes apart"),
]


def scores_of(rule: str, make: Callable[[Made], None], seed: int = 0) -> Tensor:
    made = Made(seed)
    make(made)
    return RULES[rule](made.observed(), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rule", "make"), CASES)
def test_a_rule_prefers_what_it_says(rule, make):
    """The few that leave something to chance, in most of twenty draws; blind chance would hit a third."""
    hits = []
    for seed in range(20 if rule in ("adaptive-random", "bio-evolutionary") else 3):
        best = choose_neurons(scores_of(rule, make, seed), len(PLANTED), torch.Generator().manual_seed(seed))
        hits.append(len(set(best.tolist()) & set(PLANTED)) / len(PLANTED))
    if rule == "adaptive-random":
        assert 0.6 < sum(hits) / len(hits) < 1, hits
    elif rule == "bio-evolutionary":
        assert min(hits) >= 0.75, "the elite is in"
        assert 0.75 < sum(hits) / len(hits) < 1, "tournaments are a matter of chance"
    else:
        assert min(hits) == 1, hits


def test_every_rule_has_its_case():
    assert {case.values[0] for case in CASES} | {"bio-stdp"} == set(RULES)


def test_neurons_that_do_the_same_have_the_same_mean_rank():
    made = Made()
    good_at_most(made)
    made.post[..., OTHERS] = 0.0
    scores = RULES["bio-multi-objective"](made.observed(), torch.Generator())
    assert len(scores[OTHERS].unique()) == 1, "silent ones are alike, whichever comes first"
    assert scores[PLANTED].min() > scores[OTHERS].max()


def test_stdp_orders_pre_before_post():
    """Of neurons that spike one after the other the earlier is left; those that spike together are no pair."""
    made = Made()
    made.post = torch.zeros(ROWS, TICKS, NEURONS)
    for row in range(0, ROWS, 2):
        for later, neuron in enumerate((7, 2, 10)):
            made.post[row, row % 9 + later, neuron] = 1
        made.post[row + 1, row % 9, [0, 1]] = 1
    for order in ({(7, 2), (2, 10), (7, 10)}, {(2, 7), (10, 2), (10, 7)}):
        left, right = choose_pairs(RULES["bio-stdp"](made.observed(), made.generator), 3, made.generator)
        assert set(zip(left.tolist(), right.tolist(), strict=True)) == order
        made.post = made.post.flip(1)


def test_hebbian_pairs_are_those_that_fire_together():
    left, right = choose_pairs(scores_of("bio-hebbian", together), 6, torch.Generator().manual_seed(0))
    assert set(left.tolist()) | set(right.tolist()) == set(PLANTED)


@pytest.mark.parametrize("count", [1, 6, 11, 12, 40, 66])
@pytest.mark.parametrize("rule", RULES)
def test_pairs_are_valid_distinct_and_the_same_for_a_seed(rule, count):
    made = Made()
    telling_classes(made)
    made.losses = made.noise(ROWS, TICKS)
    activity, found = made.observed(), []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        left, right = choose_pairs(RULES[rule](activity, generator), count, generator)
        found.append(list(zip(left.tolist(), right.tolist(), strict=True)))
    assert found[0] == found[1], "deterministic"
    for pairs in found:
        assert len({frozenset(pair) for pair in pairs}) == count == len(pairs)
        assert all(0 <= neuron < NEURONS for pair in pairs for neuron in pair)
        assert all(one != other for one, other in pairs)


def test_a_pool_gives_everyone_as_many_partners():
    scores = torch.zeros(NEURONS)
    scores[PLANTED] = 1
    left, right = choose_pairs(scores, 6, torch.Generator().manual_seed(0))
    uses = torch.bincount(torch.cat([left, right]), minlength=NEURONS)
    assert sorted(uses.tolist()) == [0] * 6 + [2] * 6
    assert (uses[PLANTED] == 2).all(), "half of all neurons, the best among them"


def test_batches_are_forgotten_as_asked():
    made, other = Made(0), Made(1)
    whole, forgetful = made.observed(keep=1.0), made.observed(keep=0.5)
    whole.observe(other.post)
    forgetful.observe(other.post)
    both = torch.cat([made.post, other.post]).flatten(0, 1).double()
    torch.testing.assert_close(whole.correlation(), torch.corrcoef(both.T))
    assert float(forgetful["count"]) == 1.5 * ROWS * TICKS
    resumed = NeuronActivity(NEURONS, keep=0.5)
    resumed.load_state_dict(forgetful.state_dict())
    torch.testing.assert_close(resumed.correlation(), forgetful.correlation(), rtol=0, atol=0)


SELECTIONS = [
    pytest.param({}, id="pairs"),
    pytest.param({"self_pairs": 3}, id="self pairs"),
    pytest.param({"neuron_selection": "first-last", "out_neurons": 5, "action_neurons": 4}, id="each with each"),
    pytest.param({"neuron_selection": "random", "out_neurons": 12, "action_neurons": 9}, id="too few for both"),
]


def observed(model) -> NeuronActivity:
    activity, inputs = NeuronActivity(model.config.width, 3), tiny_inputs(model, rows=24, seed=1)
    with torch.no_grad(), overheard(model) as posts:
        model(inputs)
    activity.observe(torch.stack(posts, 1), torch.eye(3)[torch.arange(24) % 3], torch.rand(24))
    return activity


@pytest.mark.parametrize("overrides", SELECTIONS)
def test_pairs_fit_the_syncs_and_differ_from_those_drawn(overrides):
    model = tiny_model(**overrides)
    scores = RULES["bio-plasticity"](observed(model), torch.Generator())
    chosen = select_by(model.config, scores, torch.Generator().manual_seed(0))
    drawn = select_pairs(model.config, torch.Generator().manual_seed(0))
    for (left, right), (drawn_left, drawn_right) in zip(chosen, drawn, strict=True):
        assert left.shape == right.shape == drawn_left.shape
        assert len({frozenset(pair) for pair in zip(left.tolist(), right.tolist(), strict=True)}) == len(left)
        assert not (torch.equal(left, drawn_left) and torch.equal(right, drawn_right))
    selves = model.config.self_pairs
    best = choose_neurons(scores, max(selves, 1), torch.Generator().manual_seed(0))
    for left, right in chosen if selves else ():
        assert torch.equal(left[:selves], right[:selves])
        assert left[0] == best[0]
        assert (left[selves:] != right[selves:]).all()


@pytest.mark.parametrize("where", ["both", "action", "out"])
def test_chosen_pairs_come_back_from_a_checkpoint_and_into_the_program(where, tmp_path):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = SelectionConfig(rule="bio-hebbian", where=where, warmup_updates=3)
    activity = observed(model)
    assert [after_update(model, activity, config, done, seed=5) for done in (1, 2, 3, 4)] == [False, False, True, False]
    for name in ("action", "out"):
        now, was = model.state_dict()[f"{name}_sync.left"], before[f"{name}_sync.left"]
        assert torch.equal(now, was) == (where not in ("both", name)), f"{name} is frozen where it was asked for"
    with torch.no_grad():
        for parameter in (model.readout.weight, model.query.weight):
            parameter.normal_(generator=torch.Generator().manual_seed(0))  # as if it had learned on
    write_checkpoint(
        tmp_path / "update-000003",
        Checkpoint(weights=model.state_dict(), config={"family": "ctm", "model": model.config.to_dict()}),
    )
    loaded, _ = load_model(tmp_path / "update-000003")
    inputs = tiny_inputs(model, rows=4)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
        expected = model(inputs).predictions
        context, tick, rows = Encode(loaded)(inputs), Tick(loaded, 8).eval(), len(inputs)
        state = pack_state(loaded.start(rows), torch.zeros(rows, dtype=torch.int64))
        for index in range(model.config.ticks):
            results = tick(*context, *state)
            state = results[: len(state)]
            torch.testing.assert_close(results[len(state)], expected[:, index], atol=1e-4, rtol=1e-4)


def test_a_new_pair_begins_afresh_and_an_old_one_goes_on():
    model = tiny_model(energy_hidden=4)
    sync, readers = model.out_sync, [model.readout, model.energy.hidden]
    weights = [reader.weight.clone() for reader in readers]
    left, right, decay = sync.left.clone(), sync.right.clone(), sync.decay.clone()
    left[3], right[5] = (left[3] + 1) % 16, (right[5] + 1) % 16
    begun = install(sync, (left, right), readers)
    new = torch.zeros(len(left), dtype=torch.bool)
    new[[3, 5]] = True
    assert torch.equal(sync.left, left)
    assert torch.equal(sync.right, right)
    assert torch.equal(sync.decay == 0, new)
    assert torch.equal(sync.decay[~new], decay[~new])
    assert [weight for weight, _ in begun] == [sync.decay, *(reader.weight for reader in readers)]
    assert all(torch.equal(where, new.expand_as(weight)) for weight, where in begun)
    for reader, weight in zip(readers, weights, strict=True):
        assert torch.equal(reader.weight[:, ~new], weight[:, ~new])
        assert not reader.weight[:, new].any()


def test_each_rule_gives_a_model_pairs_of_its_own():
    model, found = tiny_model(), set()
    activity = observed(model)
    for rule in RULES:
        begun = select_and_freeze(model, activity, SelectionConfig(rule=rule), seed=0)
        assert any(where.any() for _, where in begun)
        pairs = zip(model.out_sync.left.tolist(), model.out_sync.right.tolist(), strict=True)
        found.add(frozenset(frozenset(pair) for pair in pairs))
    assert len(found) == len(RULES)


def test_a_model_with_new_pairs_goes_on_learning():
    model = tiny_model()
    inputs = tiny_inputs(model, rows=4)
    select_and_freeze(model, observed(model), SelectionConfig(rule="bio-hebbian"), seed=0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        predictions = model(inputs).predictions
        (predictions.square() + predictions).sum().backward()
        optimiser.step()
    assert model.readout.weight.grad.any(0).all(), "every new pair has a say again"
    assert model.query.weight.grad.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: SelectionConfig(rule="bio-luck"), "selection.rule must be one of", id="no such rule"),
        pytest.param(lambda: SelectionConfig(rule="bio-stdp", where="in"), "where must be one of", id="nowhere"),
        pytest.param(lambda: SelectionConfig(rule="bio-stdp", warmup_updates=0), "at least 1, got 0", id="no warm-up"),
        pytest.param(lambda: NeuronActivity(4).observe(torch.zeros(2, 1, 4)), "at least 2, 4", id="one tick"),
        pytest.param(lambda: NeuronActivity(4).observe(torch.zeros(2, 3, 5)), "at least 2, 4", id="other neurons"),
        pytest.param(
            lambda: NeuronActivity(4, 2).observe(torch.zeros(2, 3, 4), torch.zeros(2, 3)), r"\[2, 2\]", id="targets"
        ),
        pytest.param(
            lambda: NeuronActivity(4).observe(torch.zeros(2, 3, 4), losses=torch.zeros(3)), "losses", id="losses"
        ),
        pytest.param(lambda: NeuronActivity(4).correlation(), "no post-activations", id="nothing observed"),
        pytest.param(
            lambda: RULES["performance-guided"](Made().observed(), torch.Generator()), "no losses", id="no losses"
        ),
        pytest.param(lambda: RULES["task-aware"](Made().observed(), torch.Generator()), "one-hot", id="no classes"),
        pytest.param(lambda: choose_pairs(torch.zeros(4), 7, torch.Generator()), "6 different", id="too many pairs"),
        pytest.param(lambda: choose_neurons(torch.zeros(4), 5, torch.Generator()), "5 of 4", id="too many neurons"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_scores_of_pairs_become_scores_of_neurons():
    scores = torch.tensor([[9.0, 1.0, 2.0], [3.0, 9.0, 0.0], [0.0, 4.0, 9.0]])
    torch.testing.assert_close(of_neurons(scores), torch.tensor([2.5, 3.5, 3.0]))
