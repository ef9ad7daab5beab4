"""A diffusion model small enough for tests, with weights drawn wide, so that every path of it shows."""

from dataclasses import replace

import torch

from ctm.config import CTMConfig
from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.entropy_model import EntropyModelConfig
from ctm.diffusion.granularity import GranularityConfig
from ctm.diffusion.jepa import JEPAConfig
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.patches import PatcherConfig
from ctm.diffusion.thinker_reasoning import ReasoningThinker
from ctm.diffusion.tracker import TrackerConfig

DIFFUSION = DiffusionConfig(side=6, patch=3, classes=4, levels=20, bins=4, width=16, layers=2, heads=2)
CORE = CTMConfig(
    ticks=5,
    width=24,
    memory=4,
    attention_width=16,
    heads=2,
    out_neurons=12,
    action_neurons=8,
    nlm_hidden=3,
    in_channels=16,
    input_shape=(16, 4),
    out_dims=36 * 4,
    prediction_shape=(36, 4),
)
PATCHER = PatcherConfig(
    length=36, width=16, min_length=2, max_length=8, threshold=5.52, entropy=EntropyModelConfig(width=8, layers=2)
)
SENSES: dict[str, dict[str, object]] = {
    "tracker": {"tracker": TrackerConfig(channels=16, heads=2, scales=1, code=8)},
    "granularity": {"granularity": GranularityConfig(length=36, width=16, word=3, block=12, token=3)},
    "patcher": {"patcher": PATCHER},
    "jepa": {"jepa": JEPAConfig(hidden=16)},
    "dynamic": {"dynamic": PATCHER},
}
"""What switches on each of the senses' parts."""


def small_model(seed: int = 0, ticks: int = CORE.ticks, **settings: object) -> EnhancedCTMDiffusion:
    """Layers that begin at zero are drawn too: otherwise nothing would depend on them."""
    torch.manual_seed(seed)
    model = EnhancedCTMDiffusion(replace(CORE, ticks=ticks), replace(DIFFUSION, **settings), seed=seed)
    with torch.no_grad():
        for weight in model.denoiser.parameters():
            if not weight.any():
                weight.normal_(std=0.2)
        if model.thinker is not None:
            # Otherwise all certainties are nearly the same, and thresholds tell no row from another.
            core = model.thinker.core
            for weight in (core.readout.weight, *core.synapse.parameters(), *core.neurons.parameters()):
                weight.mul_(3)
            core.readout.weight.mul_(10)
        if isinstance(model.thinker, ReasoningThinker):
            # A fresh controller does nothing but go forward.
            controller = model.thinker.model.controller
            for layer, scale in ((controller.look_at, 6), (controller.move_logits, 6), (controller.gate, 24)):
                layer.weight.mul_(scale)
            controller.move_logits.bias.zero_()
            controller.gate.bias.zero_()
            controller.detour_from.weight.normal_()
    return model.eval()


def noisy_rows(rows: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, levels and labels."""
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, 6, 6, generator=random),
        torch.randint(DIFFUSION.levels, (rows,), generator=random),
        torch.randint(DIFFUSION.classes, (rows,), generator=random),
    )
