"""CTM-controlled diffusion: at every reverse step a CTM thinks about the noisy image and guides the denoiser.

    noisy, level, label ── CTM, tick by tick ──> bins of x_0, certainty, guide ─┐
    noisy, level, label ── denoiser <── strength = certainty, 0 if it abstains ─┘──> noise (or velocity)

One network is both paths: without a thought, or with one of strength 0, it gives the base prediction.
"""

# Shapes: N rows, T ticks, S side, K bins, C = S * S * K; of a thought's state [N, S], S is its width.

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.certainty import most_certain
from ctm.config import CTMConfig
from ctm.diffusion.bins import bin_of, expected
from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.control import OTHER, Control, Controlled, Outcome
from ctm.diffusion.denoiser import Denoiser, Guide
from ctm.diffusion.noise import NoiseSchedule, Parts
from ctm.diffusion.reverse import clipped
from ctm.diffusion.senses import Fed, Seen, Senses
from ctm.diffusion.thinker import Musings, PlainThinker, Thinker
from ctm.model import CTM


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
    losses: Mapping[str, Tensor]
    """What is descended beside the denoiser's error, unweighted, by the name of its weight."""


class Watched(NamedTuple):
    """Another thought that rows are told of while they learn."""

    fed: dict[str, Tensor]
    """What it hands on."""
    estimate: Tensor | None
    """[N, S, S] what it took for the clean image."""


class EnhancedCTMDiffusion(nn.Module):
    """The thought and the denoiser, with all that is switched on around them."""

    def __init__(self, core: CTMConfig, diffusion: DiffusionConfig, *, seed: int | None = None) -> None:
        """Weights are drawn from torch's generator, the CTM's pairs of neurons from the seed; see `CTM`."""
        super().__init__()
        diffusion.check_core(core)
        self.diffusion = diffusion
        self.schedule = NoiseSchedule(diffusion.schedule, diffusion.levels)
        self.thinker: Thinker | None = None
        state_width = 0
        if diffusion.guided:
            self.thinker = PlainThinker(CTM(core, seed=seed), traces=diffusion.watches)
            self.senses, self.control = Senses(diffusion), Control(diffusion, core)
            state_width = self.control.state_width
        self.denoiser = Denoiser(diffusion, state_width)

    def see(self, noisy: Tensor, level_N: Tensor, label_N: Tensor, fed: Fed) -> Seen:
        """What a thought attends to in images of [N, S, S]."""
        seen: Seen = self.senses(noisy, level_N, label_N, fed)
        return seen

    def think(self, noisy: Tensor, level_N: Tensor, label_N: Tensor, fed: Fed | None = None) -> Musings:
        """Think about every row, all ticks of it; without `fed`, as at the first reverse step."""
        return self._think(self.see(noisy, level_N, label_N, self.nothing_fed(noisy) if fed is None else fed))

    def guide(self, prediction: Tensor, certainty_N: Tensor, state: Tensor, abstains_N: Tensor) -> Guide:
        """What one tick of a thought, [N, C], [N], [N, S], tells the denoiser; nothing where it abstains."""
        side, bins = self.diffusion.side, self.diffusion.bins
        strength_N = certainty_N.clamp(0, 1).masked_fill(abstains_N, 0.0)
        return Guide(state, expected(torch.unflatten(prediction, -1, (side, side, bins))), strength_N)

    def denoise(self, noisy: Tensor, level_N: Tensor, label_N: Tensor, guide: Guide | None) -> Tensor:
        """Noise or velocity, as the configuration says."""
        predicted: Tensor = self.denoiser(noisy, level_N, label_N, guide)
        return predicted

    @property
    def fed(self) -> dict[str, tuple[int, ...]]:
        """What a reverse step hands to the thought of the next, by name, with the shapes of one row."""
        estimate = {"estimate": (self.diffusion.side,) * 2} if self.diffusion.refine else {}
        return estimate | (self.control.fed if self.thinker is not None else {})

    def nothing_fed(self, like: Tensor) -> dict[str, Tensor]:
        """What the first reverse step is handed: zeros, for as many rows as `like` has."""
        return {name: like.new_zeros(len(like), *shape) for name, shape in self.fed.items()}

    def hand_on(self, parts: Parts, state: Tensor | None) -> dict[str, Tensor]:
        """What one reverse step hands to the next, of its outcome and of the thinker's state that answered, [N, R]."""
        estimate = {"estimate": parts.clean} if self.diffusion.refine else {}
        return estimate if state is None else estimate | self.control.hand_on(state)

    def forward(self, clean: Tensor, label_N: Tensor) -> DiffusionLoss:
        """The loss for clean images, [N, S, S] in [-1, 1], made noisy by torch's generator."""
        config, rows, device = self.diffusion, len(clean), clean.device
        level_N = torch.randint(config.levels, (rows,), device=device)
        noise = torch.randn_like(clean)
        noisy = self.schedule.add(clean, noise, level_N)
        target = self.schedule.target(clean, noise, level_N, config.target)
        if self.thinker is None:
            error = F.mse_loss(self.denoise(noisy, level_N, label_N, None), target)
            nothing = error.detach() * 0
            return DiffusionLoss(error, nothing, error.detach(), nothing, torch.zeros_like(level_N), {})

        watched = self._watched(clean, noise, level_N, label_N)
        fed = self._refined(noisy, level_N, label_N) | watched.fed
        seen = self.see(noisy, level_N, label_N, fed)
        thought = self._think(seen)
        bins = self.thinker.judge(thought, bin_of(clean, config.bins).flatten(1))
        alone_N = torch.rand(rows, device=device) < config.base_share
        tick_N = self._drawn_tick(thought.certainties)
        here = torch.arange(rows, device=device)
        # A thought is certain of what it sees, not of what would suit the denoiser.
        certainty_N = thought.certainties[here, tick_N].detach()
        controlled = self.control(thought.states[here, tick_N], certainty_N, level_N, fed)
        guide = self.guide(thought.predictions[here, tick_N], certainty_N, controlled.state, alone_N)
        predicted = self.denoise(noisy, level_N, label_N, guide)
        error_N = (predicted - target).square().flatten(1).mean(-1)
        outcome = Outcome(label_N, ~alone_N, error_N)
        if config.basal_ganglia is not None:
            with torch.no_grad():
                base = self.denoise(noisy, level_N, label_N, None)
            outcome = outcome._replace(base_error=(base - target).square().flatten(1).mean(-1))
        if config.mirror is not None:
            estimate = self._estimated(noisy, predicted, level_N).clean
            outcome = outcome._replace(clean=clean, estimate=estimate, other_estimate=watched.estimate)
        losses = {"bins": bins.value, **seen.losses, **self.control.losses(controlled, outcome)}
        value = error_N.mean() + sum(config.weights.of(name) * loss for name, loss in losses.items())
        judged = torch.unflatten(thought.predictions[here, bins.tick], -1, (-1, config.bins)).argmax(-1)
        right = (judged == bin_of(clean, config.bins).flatten(1)).float().mean()
        guided, base = _mean(error_N, ~alone_N), _mean(error_N, alone_N)
        return DiffusionLoss(value, guided, base, right, bins.tick, losses)

    def after_update(self) -> None:
        """Move decays back to where they mean something; after every update."""
        if self.thinker is not None:
            self.thinker.project_decays()

    def _think(self, seen: Seen) -> Musings:
        assert self.thinker is not None, "the model thinks"
        return self.thinker.think(self.thinker.context(seen.tokens, seen.hidden), len(seen.tokens))

    @torch.no_grad()
    def _refined(self, noisy: Tensor, level_N: Tensor, label_N: Tensor) -> dict[str, Tensor]:
        """What rows are handed while they learn: half of them what a first attempt gives, the others nothing."""
        if not self.diffusion.refine:
            return self.nothing_fed(noisy)
        state, parts = self._attempt(noisy, level_N, label_N)
        tried = torch.rand(len(noisy), device=noisy.device) < 0.5
        found = self.hand_on(parts, state)
        return {name: value * tried.view(-1, *(1,) * (value.dim() - 1)) for name, value in found.items()}

    @torch.no_grad()
    def _watched(self, clean: Tensor, noise: Tensor, level_N: Tensor, label_N: Tensor) -> Watched:
        """The thought that rows are told of while they learn: about more of the same noise; none for half of them."""
        if not self.diffusion.watches:
            return Watched({}, None)
        rows, further_N = len(clean), self.diffusion.levels - 1 - level_N
        other_N = level_N + 1 + (torch.rand(rows, device=clean.device) * further_N).long()
        there = (torch.rand(rows, device=clean.device) < 0.5) & (further_N > 0)
        other_N = other_N.clamp(max=self.diffusion.levels - 1)
        state, parts = self._attempt(self.schedule.add(clean, noise, other_N), other_N, label_N)
        return Watched({OTHER: self.control.hand_on(state)[OTHER] * there.view(-1, 1, 1)}, parts.clean)

    def _attempt(self, noisy: Tensor, level_N: Tensor, label_N: Tensor) -> tuple[Tensor, Parts]:
        """The state, [N, R], and the outcome of a reverse step's most certain tick, as at the first step."""
        fed = self.nothing_fed(noisy)
        thought = self.think(noisy, level_N, label_N, fed)
        tick_N, here = most_certain(thought.certainties), torch.arange(len(noisy), device=noisy.device)
        certainty_N, state = thought.certainties[here, tick_N], thought.states[here, tick_N]
        nobody_N = torch.zeros_like(certainty_N, dtype=torch.bool)
        controlled: Controlled = self.control(state, certainty_N, level_N, fed)
        guide = self.guide(thought.predictions[here, tick_N], certainty_N, controlled.state, nobody_N)
        return state, self._estimated(noisy, self.denoise(noisy, level_N, label_N, guide), level_N)

    def _estimated(self, noisy: Tensor, predicted: Tensor, level_N: Tensor) -> Parts:
        parts = self.schedule.take_apart(noisy, predicted, level_N, self.diffusion.target)
        return clipped(self.schedule, parts, level_N)

    def _drawn_tick(self, certainties_NT: Tensor) -> Tensor:
        """[N]: a tick drawn at random for `any_tick` of the rows, the most certain one for the others."""
        rows, ticks = certainties_NT.shape
        drawn_N = torch.randint(ticks, (rows,), device=certainties_NT.device)
        draw_N = torch.rand(rows, device=certainties_NT.device) < self.diffusion.any_tick
        return torch.where(draw_N, drawn_N, most_certain(certainties_NT))


def _mean(values_N: Tensor, mask_N: Tensor) -> Tensor:
    """Of the chosen rows, 0 if there are none."""
    return (values_N.detach() * mask_N).sum() / mask_N.sum().clamp(min=1)
