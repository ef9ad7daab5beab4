"""CTM-controlled diffusion: at every reverse step a CTM thinks about the noisy image and guides the denoiser.

    noisy, level, label ── CTM, tick by tick ──> bins of x_0, certainty, guide ─┐
    noisy, level, label ── denoiser <── strength = certainty, 0 if it abstains ─┘──> noise (or velocity)

One network is both paths: without a thought, or with one of strength 0, it gives the base prediction.
"""

# Shapes: N rows, T ticks, S side, P patches, E width, K bins, C = S * S * K, O out pairs, D neurons.

from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.certainty import most_certain
from ctm.config import CTMConfig
from ctm.diffusion.bins import bin_of, expected
from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.denoiser import Denoiser, Guide, level_code
from ctm.diffusion.noise import NoiseSchedule
from ctm.losses import parity_loss
from ctm.model import CTM, Context


class Musings(NamedTuple):
    """What a thought about noisy images led to, tick by tick."""

    predictions: Tensor
    """[N, T, C] logits over bins."""
    certainties: Tensor
    """[N, T]"""
    states: Tensor
    """[N, T, O + D] what guides the denoiser: out sync and post-activations."""


class DiffusionLoss(NamedTuple):
    """What is descended, and its parts; scalars but for `tick`."""

    value: Tensor
    guided: Tensor
    """Mean squared error of the guided rows' prediction; 0 if there are none."""
    base: Tensor
    """Of the rows without a thought; 0 if there are none."""
    right: Tensor
    """Share of pixels whose bin the thought has right at its most certain tick."""
    tick: Tensor
    """[N] that tick, from 0."""


class EnhancedCTMDiffusion(nn.Module):
    """The thought and the denoiser."""

    def __init__(self, core: CTMConfig, diffusion: DiffusionConfig, *, seed: int | None = None) -> None:
        """Weights are drawn from torch's generator, the CTM's pairs of neurons from the seed; see `CTM`."""
        super().__init__()
        diffusion.check_core(core)
        self.diffusion = diffusion
        self.schedule = NoiseSchedule(diffusion.schedule, diffusion.levels)
        self.core: CTM | None = None
        if diffusion.guided:
            self.core = CTM(core, seed=seed)
            self.patches = nn.Linear(diffusion.patch**2, diffusion.width)
            self.place = nn.Parameter(0.02 * torch.randn(diffusion.tokens, diffusion.width))
            self.level = nn.Linear(diffusion.width, diffusion.width)
            self.label = nn.Embedding(diffusion.classes, diffusion.width)
        self.denoiser = Denoiser(diffusion, core.out_pairs + core.width)

    def context(self, noisy: Tensor, level_N: Tensor, label_N: Tensor) -> Context:
        """What a thought attends to: the patches of [N, S, S], told level and class."""
        assert self.core is not None, "the model thinks"
        told = self.level(level_code(level_N, self.diffusion.width)) + self.label(label_N)
        tokens = self.patches(self.denoiser.cut(noisy)) + self.place + told.unsqueeze(1)
        return self.core.attention.context(self.core.embed(tokens.transpose(1, 2)))

    def think(self, noisy: Tensor, level_N: Tensor, label_N: Tensor, *, ticks: int | None = None) -> Musings:
        """Think about every row for the same number of ticks, `config.ticks` unless given."""
        core = self.core
        assert core is not None, "the model thinks"
        context, state = self.context(noisy, level_N, label_N), core.start(len(noisy))
        predictions, certainties, states = [], [], []
        for root_beta_action, root_beta_out in islice(core.root_betas(), core.config.ticks if ticks is None else ticks):
            state, output = core.tick(context, state, root_beta_action, root_beta_out)
            predictions.append(output.prediction)
            certainties.append(output.certainty)
            states.append(torch.cat([output.sync_out, state.post], dim=-1))
        return Musings(*(torch.stack(ticked, dim=1) for ticked in (predictions, certainties, states)))

    def guide(self, prediction: Tensor, certainty_N: Tensor, state: Tensor, abstains_N: Tensor) -> Guide:
        """What one tick of a thought, [N, C], [N], [N, O + D], tells the denoiser; nothing where it abstains."""
        side, bins = self.diffusion.side, self.diffusion.bins
        strength_N = certainty_N.clamp(0, 1).masked_fill(abstains_N, 0.0)
        return Guide(state, expected(torch.unflatten(prediction, -1, (side, side, bins))), strength_N)

    def denoise(self, noisy: Tensor, level_N: Tensor, label_N: Tensor, guide: Guide | None) -> Tensor:
        """Noise or velocity, as the configuration says."""
        predicted: Tensor = self.denoiser(noisy, level_N, label_N, guide)
        return predicted

    def forward(self, clean: Tensor, label_N: Tensor) -> DiffusionLoss:
        """The loss for clean images, [N, S, S] in [-1, 1], made noisy by torch's generator."""
        config, rows, device = self.diffusion, len(clean), clean.device
        level_N = torch.randint(config.levels, (rows,), device=device)
        noise = torch.randn_like(clean)
        noisy = self.schedule.add(clean, noise, level_N)
        target = self.schedule.target(clean, noise, level_N, config.target)
        if self.core is None:
            error = F.mse_loss(self.denoise(noisy, level_N, label_N, None), target)
            nothing = error.detach() * 0
            return DiffusionLoss(error, nothing, error.detach(), nothing, torch.zeros_like(level_N))

        thought = self.think(noisy, level_N, label_N)
        bins = parity_loss(thought.predictions, thought.certainties, bin_of(clean, config.bins).flatten(1))
        alone_N = torch.rand(rows, device=device) < config.base_share
        tick_N = self._drawn_tick(thought.certainties)
        here = torch.arange(rows, device=device)
        # A thought is certain of what it sees, not of what would suit the denoiser.
        certainty_N = thought.certainties[here, tick_N].detach()
        guide = self.guide(thought.predictions[here, tick_N], certainty_N, thought.states[here, tick_N], alone_N)
        error_N = (self.denoise(noisy, level_N, label_N, guide) - target).square().flatten(1).mean(-1)
        value = error_N.mean() + config.bins_weight * bins.value
        judged = torch.unflatten(thought.predictions[here, bins.tick], -1, (-1, config.bins)).argmax(-1)
        right = (judged == bin_of(clean, config.bins).flatten(1)).float().mean()
        return DiffusionLoss(value, _mean(error_N, ~alone_N), _mean(error_N, alone_N), right, bins.tick)

    def project_decays(self) -> None:
        """Move decays back to where they mean something; after every update."""
        if self.core is not None:
            self.core.project_decays()

    def _drawn_tick(self, certainties_NT: Tensor) -> Tensor:
        """[N]: a tick drawn at random for `any_tick` of the rows, the most certain one for the others."""
        rows, ticks = certainties_NT.shape
        drawn_N = torch.randint(ticks, (rows,), device=certainties_NT.device)
        draw_N = torch.rand(rows, device=certainties_NT.device) < self.diffusion.any_tick
        return torch.where(draw_N, drawn_N, most_certain(certainties_NT))


def _mean(values_N: Tensor, mask_N: Tensor) -> Tensor:
    """Of the chosen rows, 0 if there are none."""
    return (values_N.detach() * mask_N).sum() / mask_N.sum().clamp(min=1)
