"""The switches of the denoiser and of its training: each trains, does what it says, and leaves the rest alone."""

import copy
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from small_diffusion import CORE, PATCHER, noisy_rows, small_model
from torch import Tensor
from torch.nn import functional as F

from benchmarks.linear_attention import LiveBytes
from ctm.diffusion.bidirectional import BidirectionalConfig
from ctm.diffusion.consciousness import ConsciousnessConfig
from ctm.diffusion.hierarchical import HierarchicalConfig
from ctm.diffusion.images import to_diffusion
from ctm.diffusion.linear_attention import LinearAttentionConfig
from ctm.diffusion.model import DiffusionLoss, EnhancedCTMDiffusion
from ctm.diffusion.pipeline import PipelineConfig, overlapped
from ctm.diffusion.program import ReverseStep
from ctm.diffusion.quality import judge_noise
from ctm.diffusion.sampling import sample
from ctm.diffusion.thinker import Musings
from ctm.diffusion.wina import WINAConfig, WINALinear
from ctm.families import load_trained
from ctm.tasks import load_task
from ctm.tasks.config import TaskConfig
from ctm.training.diffusion import DiffusionFamily
from ctm.training.loop import Trainer
from ctm.training.run import train
from ctm.training.settings import ConfigError, from_table

CONFIG = Path(__file__).parent.parent / "configs" / "digits-diffusion.toml"
ON_CPU = PipelineConfig(devices=("cpu", "cpu"), parts=3)
SWITCHES = {
    "wina": WINAConfig(sparsity=0.5, ramp=True),
    "linear_attention": LinearAttentionConfig(key_width=4, exact=2),
    "checkpoint_gradients": True,
    "pipeline": ON_CPU,
}
RECOMPUTED = {
    "the plain core": {},
    "hierarchical": {"ticks": 6, "hierarchical": HierarchicalConfig(low_ticks=2, high_width=16, high_heads=2)},
    "reasoning": {"reasoning": BidirectionalConfig(max_moves=5, places=3, memory_width=6)},
    "consciousness": {"consciousness": ConsciousnessConfig(start=0.4, threshold=1.2)},
    "dynamic": {"guided": False, "dynamic": PATCHER, "layers": 6},
}
"""What has ticks or layers of its own."""
TABLES = {
    "wina": {"sparsity": 0.5, "ramp": True},
    "linear_attention": {"key_width": 4, "exact": 4},
    "checkpoint_gradients": True,
    "pipeline": {"devices": ["cpu", "cpu"], "parts": 2},
}


def table(folder: Path, updates: int = 20, **diffusion: object) -> dict:
    values = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    values |= {"updates": updates, "output_dir": str(folder), "batch_size": 8}
    values["optimiser"] |= {"warmup_updates": 5, "average_decay": 0.0}
    values["model"] |= {"ticks": 2, "width": 24, "out_neurons": 16, "action_neurons": 8, "in_channels": 16}
    values["model"]["input_shape"] = [16, 16]
    values["diffusion"] |= {"width": 16, "heads": 2, **diffusion}
    return values


def noise(step: int) -> Tensor:
    return torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_trains(switch, tmp_path, monkeypatch):
    losses = []
    update = Trainer.update
    monkeypatch.setattr(Trainer, "update", lambda trainer: losses.append(update(trainer)) or losses[-1])
    config = from_table(table(tmp_path, **{switch: TABLES[switch]}), source="test")
    assert train(config)
    assert torch.tensor([measured.loss for measured in losses]).isfinite().all()
    trained = load_trained(tmp_path / "digits-diffusion").model
    assert isinstance(trained, EnhancedCTMDiffusion)
    assert getattr(trained.diffusion, switch), "the checkpoint knows the switch"
    torch.manual_seed(0)
    first = EnhancedCTMDiffusion(config.model, trained.diffusion)
    moved = {
        name
        for name, weight in trained.denoiser.named_parameters()
        if not torch.equal(weight, first.denoiser.get_parameter(name))
    }
    assert moved == {name for name, _ in trained.denoiser.named_parameters()}


@pytest.mark.parametrize("switch", ["wina", "linear_attention"])
def test_a_switch_changes_what_is_drawn(switch):
    labels = torch.arange(4)
    on, off = small_model(**{switch: SWITCHES[switch]}), small_model()
    if switch == "wina":
        on.load_state_dict(off.state_dict())
    drawn, without = (sample(model, labels, noise, steps=4).images for model in (on, off))
    assert ((drawn - without).abs().amax((1, 2)) > 1e-3).all()


@pytest.mark.parametrize("switch", ["wina", "linear_attention"])
@torch.no_grad()
def test_an_abstaining_row_takes_the_base_prediction_whatever_the_attention(switch):
    model, (noisy, level, label) = small_model(**{switch: SWITCHES[switch]}), noisy_rows(6)
    thought, abstains = model.think(noisy, level, label), torch.arange(6) < 3
    guide = model.guide(thought.predictions[:, -1], thought.certainties[:, -1], thought.states[:, -1], abstains)
    guided, base = model.denoise(noisy, level, label, guide), model.denoise(noisy, level, label, None)
    torch.testing.assert_close(guided[abstains], base[abstains], atol=1e-5, rtol=1e-5)
    assert ((guided - base)[~abstains].abs().amax((1, 2)) > 1e-3).all()


def test_linear_attention_that_is_exact_everywhere_is_attention_of_unit_queries_and_takes_no_longer_path():
    model = small_model(linear_attention=LinearAttentionConfig(key_width=4, exact=8)).denoiser.layers[0].attention
    tokens = torch.randn(3, 8, 16)
    query, key, value = (
        layer(tokens).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (model.query, model.key, model.value)
    )
    found = F.scaled_dot_product_attention(F.normalize(query, dim=-1), key, value, scale=1.0)
    torch.testing.assert_close(model(tokens, tokens), model.out(found.transpose(1, 2).flatten(2)))


def test_a_dense_checkpoint_runs_sparsely_and_sparsity_zero_is_dense():
    dense, none = small_model(), small_model(wina=WINAConfig(sparsity=0.0))
    none.load_state_dict(dense.state_dict())
    labels = torch.arange(4)
    wanted, found = (sample(model, labels, noise, steps=3).images for model in (dense, none))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    sparse = small_model(wina=WINAConfig(sparsity=0.8, ramp=True))
    kinds = [
        {layer.sparsity for layer in block.modules() if isinstance(layer, WINALinear)}
        for block in sparse.denoiser.layers
    ]
    assert kinds == [{0.4}, {0.8}]
    frozen = ReverseStep(sparse).model
    assert frozen.denoiser.layers[0].query.frozen_norms is not None
    assert sparse.denoiser.layers[0].query.frozen_norms is None, "only the copy that is exported is frozen"
    torch.testing.assert_close(*(sample(model, labels, noise, steps=2).images for model in (sparse, frozen)))


def test_linear_attention_may_have_sparse_maps_where_it_has_no_weights_to_drop():
    both = small_model(linear_attention=SWITCHES["linear_attention"], wina=WINAConfig(sparsity=0.6, attention=False))
    only = small_model(linear_attention=SWITCHES["linear_attention"])
    only.load_state_dict(both.state_dict())
    drawn, without = (sample(model, torch.arange(4), noise, steps=2).images for model in (both, only))
    assert not torch.allclose(drawn, without, atol=1e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> EnhancedCTMDiffusion:
    """A dense model that has learned for some seconds."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(from_table(table(folder, updates=150) | {"batch_size": 32}, source="test"))
    model = load_trained(folder / "digits-diffusion").model
    assert isinstance(model, EnhancedCTMDiffusion)
    return model


@pytest.mark.parametrize("sparsity", [0.5, 0.65, 0.8])
def test_the_error_of_a_trained_denoiser_grows_less_by_wina_than_by_magnitude(trained, sparsity):
    held_out = load_task(TaskConfig(name="digits")).held_out

    def errors(model: EnhancedCTMDiffusion) -> NDArray[np.float32]:
        """Of the noise, without a thought and by the last tick."""

        def take(rows: Tensor) -> tuple[Tensor, Tensor]:
            inputs, labels = held_out.take(rows)
            return to_diffusion(inputs, 8), labels

        judged = judge_noise(model, take, torch.arange(256), batch_size=256, seed=0)
        return np.array([judged.base.mean(), judged.guided[:, -1].mean()])

    wina = WINAConfig(sparsity=sparsity, attention=False)
    sparse = EnhancedCTMDiffusion(trained.thinker.config, replace(trained.diffusion, wina=wina)).eval()
    sparse.load_state_dict(trained.state_dict())
    magnitude = copy.deepcopy(sparse)
    for layer in magnitude.modules():
        if isinstance(layer, WINALinear):
            layer.frozen_norms = torch.ones(layer.in_features)
    dense, by_wina, by_magnitude = (errors(model) for model in (trained, sparse, magnitude))
    assert (dense < by_wina).all()
    assert (by_wina < by_magnitude).all()


def learned(**settings: object) -> tuple[DiffusionLoss, dict[str, Tensor]]:
    """The loss and the gradients of one update."""
    model = small_model(**settings).train()
    torch.manual_seed(7)
    loss = model(torch.rand(7, 6, 6) * 2 - 1, torch.arange(7) % 4)
    loss.value.backward()
    return loss, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("switch", ["checkpoint_gradients", "pipeline"])
@pytest.mark.parametrize("refine", [False, True], ids=["plain", "refined"])
def test_a_way_of_training_changes_no_loss_and_no_gradient(switch, refine):
    loss, gradients = learned(refine=refine)
    other, theirs = learned(refine=refine, **{switch: SWITCHES[switch]})
    for name in ("value", "guided", "base", "right", "tick"):
        torch.testing.assert_close(getattr(other, name), getattr(loss, name), atol=1e-6, rtol=1e-6, msg=name)
    torch.testing.assert_close(dict(other.losses), dict(loss.losses), atol=1e-6, rtol=1e-6)
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max().clamp(min=1)
        torch.testing.assert_close(theirs[name] / scale, gradient / scale, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("part", [part for part in RECOMPUTED if part != "the plain core"])
def test_recomputing_changes_no_loss_and_no_gradient_of_any_core(part):
    (loss, gradients), (other, theirs) = (
        learned(checkpoint_gradients=again, **RECOMPUTED[part]) for again in (False, True)
    )
    torch.testing.assert_close(other.value, loss.value, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(theirs, gradients, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("part", RECOMPUTED)
def test_recomputing_holds_fewer_bytes_at_once(part):
    peaks = {}
    for again in (False, True):
        model = small_model(checkpoint_gradients=again, **RECOMPUTED[part]).train()
        clean, labels = torch.rand(64, 6, 6) * 2 - 1, torch.arange(64) % 4
        with LiveBytes() as live:
            model(clean, labels).value.backward()
        peaks[again] = live.peak
    assert peaks[True] < 0.75 * peaks[False]


def test_a_thought_begins_before_the_part_before_it_is_denoised():
    order = []
    made = overlapped(
        range(3),
        lambda part: order.append(f"think {part}") or part,
        lambda part: order.append(f"denoise {part}") or 10 * part,
    )
    assert made == [(0, 0), (1, 10), (2, 20)]
    assert order == ["think 0", "think 1", "denoise 0", "think 2", "denoise 1", "denoise 2"]


def test_mixed_precision_trains_with_finite_losses_and_certainties_in_float32(tmp_path, monkeypatch):
    learned, thoughts = [], []
    learn, think = DiffusionFamily.learn, EnhancedCTMDiffusion._think
    monkeypatch.setattr(DiffusionFamily, "learn", lambda *given: learned.append(learn(*given)) or learned[-1])

    def thinking(*given: object) -> Musings:
        found = think(*given)
        if torch.is_grad_enabled():
            thoughts.append((found, torch.is_autocast_enabled("cpu")))
        return found

    monkeypatch.setattr(EnhancedCTMDiffusion, "_think", thinking)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        assert train(from_table(table(tmp_path) | {"precision": "bfloat16"}, source="test"))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert len(learned) == len(thoughts) == 20
    assert all(value.dtype == torch.float32 and value.isfinite() for found in learned for value in found)
    assert all(half and found.certainties.dtype == torch.float32 for found, half in thoughts)


def test_rows_with_certain_thoughts_take_fewer_steps_and_wait_for_the_others():
    model, labels, threshold = small_model(), torch.arange(4), 0.02
    plain = sample(model, labels, noise, steps=12, confidence_threshold=threshold)
    assert plain.steps.tolist() == [12] * 4
    made = sample(model, labels, noise, steps=12, confidence_threshold=threshold, stride=100)
    assert len(set(made.steps.tolist())) > 1, "rows go at their own pace"
    assert (made.steps < 12).any()
    assert len(made.certainties) == made.steps.max()
    torch.testing.assert_close(made.certainties[0], plain.certainties[0])
    for row, steps in enumerate(made.steps.tolist()):
        assert not made.ticks_used[steps:, row].any()
        assert (made.ticks_used[:steps, row] == CORE.ticks).all()
        assert torch.equal(made.estimates[-1, row], made.estimates[steps - 1, row])
        one = slice(row, row + 1)
        alone = sample(
            model, labels[one], lambda k, one=one: noise(k)[one], steps=12, confidence_threshold=threshold, stride=100
        )
        assert alone.steps.item() == steps
        torch.testing.assert_close(alone.images[0], made.images[row], atol=1e-5, rtol=1e-5)


def test_nobody_strides_whose_thoughts_all_abstain():
    made = sample(small_model(), torch.arange(4), noise, steps=5, confidence_threshold=1.0, stride=5)
    assert made.abstained.all()
    assert made.steps.tolist() == [5] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"wina": {}, "linear_attention": {}},
            "diffusion.wina.attention drops attention weights, of which diffusion.linear_attention forms none",
            id="two attentions",
        ),
        pytest.param({"linear_attention": {"causal": True}}, "linear_attention.causal must be false", id="causal"),
        pytest.param(
            {"linear_attention": {"exact": 21}}, "exact must be at most the 20 tokens .* got 21", id="too exact"
        ),
        pytest.param({"wina": {"sparsity": 1.0}}, r"wina.sparsity must be a share in \[0, 1\), got 1.0", id="nothing"),
        pytest.param(
            {"pipeline": {}, "guided": False}, "diffusion.pipeline needs a thought, got guided = false", id="no thought"
        ),
        pytest.param({"pipeline": {"parts": 0}}, "pipeline.parts must be a whole number .* got 0", id="no parts"),
        pytest.param({"pipeline": {"devices": ["cpu", "abacus"]}}, "cpu or cuda:1, got 'abacus'", id="no device"),
        pytest.param({"wina": {"sparsness": 1}}, "unknown key diffusion.wina.sparsness", id="unknown key"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        from_table(table(tmp_path, **settings), source="test")


def test_devices_that_are_not_here_are_refused_before_anything_runs(tmp_path):
    absent = {"devices": ["cpu", "cuda:99"]}
    with pytest.raises(ConfigError, match=r"diffusion.pipeline.devices names cuda:99, but of cuda devices there are"):
        train(from_table(table(tmp_path, pipeline=absent), source="test"))
