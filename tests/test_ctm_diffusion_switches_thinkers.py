"""Other cores and chosen pairs in the assembled diffusion model: each trains, changes samples, says what it refuses."""

import json
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_diffusion import CORE, DIFFUSION, noisy_rows, small_model

from ctm.checkpoint import point_at, read_checkpoint
from ctm.diffusion.bidirectional import BidirectionalConfig
from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.consciousness import ConsciousnessConfig
from ctm.diffusion.hierarchical import HierarchicalConfig
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.neuron_rules import RULES
from ctm.diffusion.neuron_selection import SelectionConfig
from ctm.diffusion.sampling import Samples, sample
from ctm.families import load_trained
from ctm.training.chance import Purpose, derived_seed, seed_everything
from ctm.training.optimiser import average_into
from ctm.training.run import train
from ctm.training.settings import ConfigError, from_table

CONFIG = Path(__file__).parent.parent / "configs" / "digits-diffusion.toml"
UPDATES, WARMUP = 20, 8

CORES = {
    "hierarchical": HierarchicalConfig(low_ticks=2, high_width=16, high_heads=2),
    "reasoning": BidirectionalConfig(max_moves=4, places=3, memory_width=6),
    "consciousness": ConsciousnessConfig(start=0.4, threshold=1.2, sharpness=4.0),
}
TABLES: dict[str, dict[str, object]] = {
    "hierarchical": {"low_ticks": 2, "high_width": 40, "high_heads": 2},
    "reasoning": {"max_moves": 4, "places": 3, "memory_width": 6},
    "consciousness": {"start": 0.4, "threshold": 1.2, "sharpness": 4.0},
}
OWN = {
    "hierarchical": r"thinker\.model\.(guide|report|high|start_high)",
    "reasoning": r"thinker\.model\.controller",
    "consciousness": r"thinker\.consciousness",
}


def table(folder: Path, **diffusion: object) -> dict:
    values = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    values |= {"updates": UPDATES, "batch_size": 16, "output_dir": str(folder)}
    values["optimiser"] |= {"warmup_updates": 2, "average_decay": 0.0}
    values["model"] |= {"ticks": 4, "width": 24, "out_neurons": 20, "action_neurons": 12}
    values["diffusion"] |= {"layers": 1, **diffusion}
    values["report"] = {"every": 1, "evaluate_every": UPDATES, "checkpoint_every": UPDATES}
    return values


def trained(folder: Path, **diffusion: object) -> tuple[EnhancedCTMDiffusion, EnhancedCTMDiffusion]:
    """A model after its run, all of whose losses are finite; and the model that the run began with."""
    config = from_table(table(folder, **diffusion), source="test")
    assert train(config)
    log = (folder / "digits-diffusion" / "log.jsonl").read_text(encoding="utf-8")
    losses = [entry["loss"] for entry in map(json.loads, log.splitlines()) if "loss" in entry]
    assert len(losses) == UPDATES
    assert torch.tensor(losses).isfinite().all()
    assert config.diffusion is not None
    seed_everything(config.seed, Purpose.WEIGHTS)
    fresh = EnhancedCTMDiffusion(config.model, config.diffusion, seed=derived_seed(config.seed, Purpose.PAIRS))
    model = load_trained(folder / "digits-diffusion").model
    assert isinstance(model, EnhancedCTMDiffusion)
    return model, fresh


@pytest.mark.parametrize("switch", TABLES)
def test_another_core_learns_with_all_that_is_its_own(switch, tmp_path):
    model, fresh = trained(tmp_path, **{switch: TABLES[switch]})
    before = dict(fresh.named_parameters())
    own = {name: weight for name, weight in model.named_parameters() if re.match(OWN[switch], name)}
    # The same number added to every key moves no weight of attention.
    still = [
        name for name, weight in own.items() if torch.equal(weight, before[name]) and not name.endswith("key.bias")
    ]
    assert own
    assert still == []


def drawn(model: EnhancedCTMDiffusion) -> Samples:
    def noise(step: int) -> torch.Tensor:
        return torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(step))

    return sample(model, torch.arange(4), noise, steps=3)


def silenced(switch: str) -> EnhancedCTMDiffusion:
    """A core that is made to do what the plain one does, or, of two levels, one that hears nothing of the other."""
    model = small_model(ticks=4, **{switch: CORES[switch]})
    with torch.no_grad():
        if switch == "hierarchical":
            for weight in model.thinker.model.guide.parameters():
                weight.zero_()
        elif switch == "reasoning":
            for layer, bias in ((model.thinker.model.controller.move_logits, [0.0, 0.0, 9.0]),):
                layer.weight.zero_()
                layer.bias.copy_(torch.tensor(bias))
            gate = model.thinker.model.controller.gate
            gate.weight.zero_()
            gate.bias.fill_(-9.0)
        else:
            model.thinker.consciousness.start.fill_(1.0)
            model.thinker.consciousness.threshold.fill_(-100.0)
    return model


@pytest.mark.parametrize("switch", CORES)
def test_another_core_changes_samples_and_silenced_it_is_the_plain_one(switch):
    found, without = drawn(small_model(ticks=4, **{switch: CORES[switch]})), drawn(silenced(switch))
    assert (found.images - without.images).abs().amax((1, 2)).min() > 1e-4
    if switch == "hierarchical":
        return
    plain, thinker = small_model(ticks=4), silenced(switch).thinker
    plain.load_state_dict(silenced(switch).state_dict(), strict=False)
    plain.thinker.core.load_state_dict(thinker.core.state_dict())
    torch.testing.assert_close(drawn(plain).images, without.images, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_thought_that_says_it_is_done_ends_there():
    model = small_model(seed=11, ticks=4, reasoning=CORES["reasoning"])
    noisy, level, label = noisy_rows(12)
    thought = model.think(noisy, level, label)
    ends = torch.where(thought.done.bool().any(-1), thought.done.argmax(-1) + 1, 4)
    assert len(set(ends.tolist())) > 1, "rows end at different ticks"
    # From one level of noise only, the first reverse step of a sample is this thought.
    level = torch.full((12,), DIFFUSION.levels - 1)
    thought = model.think(noisy, level, label)
    made = sample(model, label, lambda _: noisy, steps=1)
    for row in range(12):
        end = int(thought.done[row].argmax()) + 1 if thought.done[row].any() else 4
        assert made.ticks_used[0, row] == end
        assert made.certainties[0, row] == thought.certainties[row, :end].max()
    again = model.think(noisy, level, label)
    assert torch.equal(again.predictions, thought.predictions), "nothing is drawn outside training"


def test_moves_are_drawn_in_training_and_the_gate_ends_nobody():
    model = small_model(ticks=4, reasoning=CORES["reasoning"]).train()
    noisy = noisy_rows(12)
    torch.manual_seed(0)
    one, other = model.think(*noisy), model.think(*noisy)
    assert not torch.equal(one.predictions, other.predictions)
    assert ((one.done > 0) & (one.done < 1)).all()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_chooses_pairs_in_a_run_and_leaves_them_in_the_checkpoint(rule, tmp_path):
    model, fresh = trained(tmp_path, selection={"rule": rule, "warmup_updates": WARMUP})
    for name in ("action_sync", "out_sync"):
        now, drawn_at_first = getattr(model.thinker.core, name), getattr(fresh.thinker.core, name)
        changed = (now.left != drawn_at_first.left) | (now.right != drawn_at_first.right)
        assert changed.float().mean() > 0.5
    read = model.denoiser.state_in.weight
    assert read.isfinite().all()
    assert read[:, : len(now.left)].any(), "what is new has a say again"


@pytest.mark.parametrize("core", ["hierarchical", "reasoning"])
def test_action_pairs_can_be_chosen_of_another_core(core, tmp_path):
    selection = {"rule": "bio-plasticity", "where": "action", "warmup_updates": WARMUP}
    model, fresh = trained(tmp_path, selection=selection, **{core: TABLES[core]})
    assert not torch.equal(model.thinker.core.action_sync.left, fresh.thinker.core.action_sync.left)
    assert torch.equal(model.thinker.core.out_sync.left, fresh.thinker.core.out_sync.left)


@pytest.mark.parametrize("stopped_at", [5, 10], ids=["while warming up", "after the choice"])
def test_a_run_that_was_interrupted_chooses_the_same_pairs(stopped_at, tmp_path):
    values = table(tmp_path / "whole", selection={"rule": "adaptive-random", "warmup_updates": WARMUP})
    values["optimiser"]["average_decay"] = 0.9
    values["report"] |= {"checkpoint_every": 5, "keep": 4}
    assert train(from_table(values, source="test"))
    whole, again = tmp_path / "whole" / "digits-diffusion", tmp_path / "again" / "digits-diffusion"
    shutil.copytree(whole, again, symlinks=True)
    point_at(again / "last", again / "checkpoints" / f"update-{stopped_at:06d}")
    assert train(from_table(values | {"output_dir": str(tmp_path / "again")}, source="test"), resume=True)
    mine, theirs = read_checkpoint(again / "last"), read_checkpoint(whole / "last")
    for name, tensors in {"served": theirs.weights, **theirs.trainer}.items():
        for key, tensor in tensors.items():
            found = mine.weights[key] if name == "served" else mine.trainer[name][key]
            assert torch.equal(found, tensor), f"{name}: {key}"


def test_the_choice_is_made_once_and_says_what_began_anew():
    model = small_model(selection=SelectionConfig(rule="bio-plasticity", warmup_updates=3))
    before, begun = drawn(model.eval()), []
    model.train()
    for _ in range(5):
        model(torch.rand(8, 6, 6) * 2 - 1, torch.arange(8) % 4)
        begun.append(model.after_update())
    assert [bool(some) for some in begun] == [False, False, True, False, False]
    assert not torch.allclose(drawn(model.eval()).images, before.images), "no weight was updated but by the choice"
    reads = {id(weight): where for weight, where in begun[2]}
    where = reads[id(model.denoiser.state_in.weight)]
    assert not where[:, CORE.out_pairs :].any(), "post-activations are what they were"
    assert not model.denoiser.state_in.weight[where].any()


def test_an_average_that_begins_anew_is_a_copy():
    average, model = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    average_into(average, model, 0, 0.99)
    assert torch.equal(average.weight, model.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"hierarchical": CORES["hierarchical"], "reasoning": CORES["reasoning"]},
            "diffusion.hierarchical and diffusion.reasoning are two cores, got both",
            id="two cores",
        ),
        pytest.param(
            {"reasoning": CORES["reasoning"], "consciousness": CORES["consciousness"]},
            "diffusion.reasoning and diffusion.consciousness are two cores, got both",
            id="a conscious core that goes back",
        ),
        pytest.param(
            {"hierarchical": CORES["hierarchical"], "selection": SelectionConfig(rule="bio-stdp")},
            "diffusion.selection.where must be 'action' with diffusion.hierarchical, whose out sync is of its high "
            "level, got 'both'",
            id="pairs of the high level",
        ),
        pytest.param(
            {"guided": False, "consciousness": CORES["consciousness"]},
            "diffusion.consciousness needs a thought, got guided = false",
            id="no thought",
        ),
    ],
)
def test_settings_that_exclude_each_other_are_refused_with_both_sides(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DiffusionConfig(side=8, **settings)


@pytest.mark.parametrize(
    ("settings", "core", "message"),
    [
        pytest.param({"hierarchical": CORES["hierarchical"]}, {}, "low_ticks must divide ticks 5, got 2", id="cycles"),
        pytest.param(
            {"reasoning": CORES["reasoning"]}, {}, "diffusion.reasoning.max_moves must be model.ticks, 5", id="moves"
        ),
        pytest.param(
            {"selection": SelectionConfig(rule="bio-stdp")},
            {"ticks": 1},
            "diffusion.selection needs model.ticks of at least 2, got 1",
            id="one tick",
        ),
        pytest.param(
            {"selection": SelectionConfig(rule="bio-stdp")},
            {"width": 6},
            "diffusion.selection does not fit the model: 6 neurons have 15 different pairs, got 20 to choose",
            id="few neurons",
        ),
    ],
)
def test_a_core_that_cannot_do_it_is_refused_with_both_sides(settings, core, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EnhancedCTMDiffusion(replace(CORE, **core), replace(DIFFUSION, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"selection": {"rule": "bio-stdp", "warmup_updates": 20}},
            "diffusion.selection.warmup_updates must be below the 20 updates of the run, got 20",
            id="never chosen",
        ),
        pytest.param({"reasoning": {"moves": 3}}, "unknown key diffusion.reasoning.moves", id="unknown key"),
        pytest.param({"selection": {"rule": "luck"}}, "selection.rule must be one of", id="unknown rule"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused_before_it_begins(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(message)):
        train(from_table(table(tmp_path, **settings), source="test"))


def test_settings_of_a_core_come_back_from_a_checkpoint():
    for settings in (
        *({name: config} for name, config in CORES.items()),
        {"selection": SelectionConfig(rule="bio-stdp")},
    ):
        config = replace(DIFFUSION, **settings)
        assert DiffusionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
