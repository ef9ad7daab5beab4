"""The senses' parts, switched on alone: each trains, changes what is drawn, and fits its model or is refused."""

import tomllib
from pathlib import Path

import pytest
import torch
from small_diffusion import CORE, DIFFUSION, PATCHER, SENSES, noisy_rows, small_model

from ctm.diffusion.byte_senses import CoveredBytes
from ctm.diffusion.config import DiffusionConfig, LossWeights
from ctm.diffusion.granularity import GranularityConfig
from ctm.diffusion.image_bytes import image_bytes
from ctm.diffusion.jepa import JEPAConfig
from ctm.diffusion.linear_attention import LinearAttentionConfig
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.patches import PatcherConfig
from ctm.diffusion.program import Encode
from ctm.diffusion.sampling import sample
from ctm.diffusion.tracker import TrackerConfig
from ctm.diffusion.wina import WINAConfig
from ctm.families import load_trained
from ctm.training.chance import Purpose, derived_seed, seed_everything
from ctm.training.run import train
from ctm.training.settings import ConfigError, from_table
from export.torchscript import quiet, write_torchscript

CONFIG = Path(__file__).parent.parent / "configs" / "digits-diffusion.toml"
BYTES = {"length": 64, "width": 16, "max_length": 16, "entropy": {"width": 8, "layers": 2}}
TABLES = {
    "tracker": ({"channels": 16, "heads": 2, "scales": 1, "code": 8}, "senses.tracker."),
    "granularity": ({"length": 64, "width": 16, "word": 4, "block": 8, "token": 4}, "senses.covered."),
    "patcher": (BYTES, "senses.surprises."),
    "jepa": ({"hidden": 16}, "jepa."),
    "dynamic": (BYTES, "denoiser."),
    "refine": (True, "senses.estimate."),
}
"""What a configuration file says to switch each on, and where its weights are."""
GRID_ALONE = {"twice": True, "wina": WINAConfig(), "linear_attention": LinearAttentionConfig(key_width=4, exact=2)}
"""What there is of the denoiser over the grid alone."""


def table(folder: Path, **diffusion: object) -> dict:
    values = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    values |= {"updates": 20, "batch_size": 16, "output_dir": str(folder)}
    values["diffusion"] |= {"width": 16, "layers": 1, "heads": 2} | diffusion
    values["model"] |= {"ticks": 2, "width": 16, "memory": 3, "attention_width": 8, "heads": 2}
    values["model"] |= {"out_neurons": 12, "action_neurons": 8, "in_channels": 16, "input_shape": [16, 16]}
    values["optimiser"] |= {"warmup_updates": 2, "average_decay": 0.0}
    values["report"] |= {"every": 5}
    return values


@pytest.mark.parametrize("name", TABLES)
def test_switched_on_alone_it_trains(name, tmp_path):
    settings, prefix = TABLES[name]
    run = from_table(table(tmp_path, **{name: settings}), source="test")
    assert run.diffusion is not None
    seed_everything(run.seed, Purpose.WEIGHTS)
    before = EnhancedCTMDiffusion(run.model, run.diffusion, seed=derived_seed(run.seed, Purpose.PAIRS)).state_dict()
    assert train(run), "a loss that is not finite would have ended it"
    after = load_trained(tmp_path / "digits-diffusion").model.state_dict()
    own = [key for key in after if key.startswith(prefix)]
    assert own
    assert [key for key in own if torch.equal(after[key], before[key])] == []


def noise(step: int) -> torch.Tensor:
    return torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(step))


def drawn(model: EnhancedCTMDiffusion) -> torch.Tensor:
    return sample(model.eval(), torch.arange(4), noise, steps=3).images


def without(model: EnhancedCTMDiffusion, name: str) -> EnhancedCTMDiffusion:
    """The same weights, but what is switched on is told nothing or says nothing."""
    match name:
        case "tracker":
            model.senses.tracker = None
        case "granularity":
            model.senses.covered = None
        case "patcher":
            model.senses.surprises = None
        case "refine":
            model.senses.estimate.weight.data.zero_()
        case "dynamic":
            # The grid's denoiser has other weights; here patches lose their say over pixels.
            model.denoiser.back.weight.data.zero_()
    return model


@pytest.mark.parametrize("name", ["tracker", "granularity", "patcher", "refine", "dynamic"])
def test_switched_on_alone_it_changes_what_is_drawn(name):
    settings = SENSES.get(name, {"refine": True})
    assert (drawn(small_model(**settings)) - drawn(without(small_model(**settings), name))).abs().max() > 1e-4


def test_jepa_changes_what_is_drawn_by_what_the_senses_learn():
    images = []
    for weight in (0.0, 1.0):
        model = small_model(**SENSES["jepa"], weights=LossWeights(jepa=weight)).train()
        torch.manual_seed(3)
        model(noisy_rows(16)[0].clamp(-1, 1), torch.arange(16) % 4).value.backward()
        with torch.no_grad():
            for weights in model.senses.parameters():
                weights.sub_(weights.grad)
        images.append(drawn(model))
    assert (images[0] - images[1]).abs().max() > 1e-4


def test_the_slow_copy_follows_after_updates_alone_and_belongs_to_the_checkpoint():
    model = small_model(**SENSES["jepa"]).train()
    torch.manual_seed(3)
    model(noisy_rows(16)[0].clamp(-1, 1), torch.arange(16) % 4).value.backward()
    slow = dict(model.jepa.slow.named_parameters())
    assert all(weight.grad is None and not weight.requires_grad for weight in slow.values())
    assert all(weight.grad is not None and weight.grad.any() for weight in model.jepa.predictor.parameters())
    before = slow["module.place"].clone()
    with torch.no_grad():
        model.senses.place.add_(1.0)
    model.after_update()
    torch.testing.assert_close(slow["module.place"], before + 0.004)
    assert torch.equal(model.state_dict()["jepa.slow.module.place"], slow["module.place"])


def test_jepa_is_no_part_of_what_is_exported(tmp_path):
    noisy, graphs = noisy_rows(3), []
    for settings in ({}, SENSES["jepa"]):
        path = tmp_path / "encode.ts"
        write_torchscript(Encode(small_model(**settings)), noisy, path)
        with quiet():
            graph = torch.jit.load(path)
        graphs.append((graph.code, [(name, value.shape) for name, value in graph.state_dict().items()]))
    assert graphs[0] == graphs[1]


@pytest.mark.parametrize("name", ["patcher", "dynamic"])
def test_dynamic_patches_are_the_rows_own(name):
    model, labels = small_model(**SENSES[name]), torch.arange(4)
    together = drawn(model)
    alone = sample(model, labels[1:2], lambda step: noise(step)[1:2], steps=3).images[0]
    torch.testing.assert_close(alone, together[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["granularity", "patcher", "dynamic"])
def test_a_row_that_is_no_number_leaves_the_others_alone(name):
    def spoilt(step: int) -> torch.Tensor:
        drawn = noise(step)
        drawn[0, 0, 0] = torch.nan
        return drawn

    model, labels = small_model(**SENSES[name]), torch.arange(4)
    clean, found = (sample(model, labels, noises, steps=3).images for noises in (noise, spoilt))
    assert torch.equal(found[1:], clean[1:])
    assert found[0].isnan().any()


@torch.no_grad()
def test_rows_have_as_many_dynamic_patches_as_they_surprise():
    model = small_model(**SENSES["patcher"])
    noisy, level, label = noisy_rows(6)
    noisy[0] = -1.0
    seen = model.see(noisy, level, label, {})
    assert seen.tokens.shape == (6, 4 + PATCHER.patches, 16)
    counts = (~seen.hidden).sum(1) - 4
    assert counts[0] < counts[1:].min(), "a blank image has long patches"


def test_a_patch_has_the_features_of_the_bytes_that_it_covers():
    torch.manual_seed(0)
    config = GranularityConfig(length=36, width=8, word=3, block=12, token=1)
    covered, bytes_NB = CoveredBytes(config, 6, 3), torch.randint(256, (2, 36))
    by_pixel = covered.granularity(bytes_NB).unflatten(1, (6, 6))
    torch.testing.assert_close(covered(bytes_NB)[:, 1], by_pixel[:, :3, 3:].flatten(1, 2).mean(1))
    changed = bytes_NB.clone()
    changed[:, 35] = (changed[:, 35] + 1) % 256
    moved = (covered(changed) - covered(bytes_NB)).abs().amax((0, 2)) > 0
    # A block is two rows of pixels here, so the last byte is heard in both lower patches.
    assert moved.tolist() == [False, False, True, True]


def test_pixels_become_bytes_row_by_row_and_what_is_beyond_is_cut_off():
    image = torch.tensor([[[-1.0, 1.0], [0.0, 7.0]], [[-3.0, -0.999], [0.5, 0.1]]])
    assert image_bytes(image).tolist() == [[0, 255, 128, 255], [0, 0, 191, 140]]


@pytest.mark.parametrize("guided", [True, False])
def test_flattened_and_padded_rows_give_the_same_numbers(guided):
    found = []
    for flattens in (True, False):
        model = small_model(dynamic=PATCHER, guided=guided).train()
        model.denoiser.flattens = flattens
        torch.manual_seed(3)
        clean = noisy_rows(8)[0].clamp(-1, 1)
        clean[0] = -1.0
        loss = model(clean, torch.arange(8) % 4)
        loss.value.backward()
        found.append((loss.value.detach(), {name: weight.grad for name, weight in model.named_parameters()}))
        counts = (~model.denoiser.lay_out(clean).hidden).sum(1)
        assert len(counts.unique()) > 1, "rows have different numbers of patches"
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"tracker": TrackerConfig(channels=8)}, "tracker.channels must be diffusion.width 16, got 8", id="t"
        ),
        pytest.param(
            {"patcher": PatcherConfig(length=64)}, "patcher.length must be the 36 pixels of 6 x 6", id="length"
        ),
        pytest.param(
            {"dynamic": PatcherConfig(length=36, width=8)}, "dynamic.width must be diffusion.width 16", id="d"
        ),
        pytest.param({"granularity": GranularityConfig(length=64)}, "granularity.length must be the 36 pixels", id="g"),
        pytest.param(
            {"jepa": JEPAConfig(), "patch": 6}, "jepa needs at least 2 patches, got patch 6 of side 6", id="j"
        ),
        pytest.param({"patcher": PATCHER, "guided": False}, "diffusion.patcher needs a thought", id="no thought"),
        *(
            pytest.param(
                {"dynamic": PATCHER, name: part},
                f"diffusion.{name} and diffusion.dynamic are of two denoisers, got both",
                id=f"dynamic and {name}",
            )
            for name, part in GRID_ALONE.items()
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_both_sides(settings, message):
    with pytest.raises(ValueError, match=message):
        small_model(**settings)


def test_settings_of_parts_come_back_from_a_checkpoint_and_unknown_ones_are_named(tmp_path):
    config = small_model(**SENSES["tracker"], **SENSES["jepa"], patcher=PATCHER).diffusion
    assert DiffusionConfig.from_dict(config.to_dict()) == config
    assert CORE.in_channels == DIFFUSION.width
    with pytest.raises(ConfigError, match=r"unknown key diffusion\.patcher\.treshold, .* did you mean"):
        from_table(table(tmp_path, patcher=BYTES | {"treshold": 1.0}), source="test")
