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
from ctm.diffusion.control import Control
from ctm.diffusion.cores import build_thinker
from ctm.diffusion.denoiser import Denoiser, Guide
from ctm.diffusion.dynamic_denoiser import DynamicDenoiser
from ctm.diffusion.jepa import DRAWS
from ctm.diffusion.neuron_selection import Begun
from ctm.diffusion.noise import NoiseSchedule, Parts
from ctm.diffusion.pair_selector import PairSelector
from ctm.diffusion.reverse import clipped
from ctm.diffusion.senses import Fed, Seen, Senses
from ctm.diffusion.senses_jepa import SensesJEPA
from ctm.diffusion.thinker import Musings, Thinker, bins_error


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
            self.thinker = build_thinker(core, diffusion, seed=seed)
            self.senses, self.control = Senses(diffusion), Control(diffusion)
            state_width = self.thinker.state_width
        kind = Denoiser if diffusion.dynamic is None else DynamicDenoiser
        self.denoiser = kind(diffusion, state_width)
        self.jepa = SensesJEPA(self.senses, diffusion.jepa) if diffusion.jepa is not None else None
        self.selector: PairSelector | None = None
        if diffusion.selection is not None:
            self.selector = PairSelector(diffusion.selection, core.width, diffusion.classes, seed=seed or 0)

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

    def nothing_fed(self, like: Tensor) -> dict[str, Tensor]:
        """What the first reverse step is handed: zeros, for as many rows as `like` has."""
        return {name: like.new_zeros(len(like), *shape) for name, shape in self.diffusion.fed.items()}

    def hand_on(self, parts: Parts) -> dict[str, Tensor]:
        """What one reverse step hands to the next."""
        return {"estimate": parts.clean} if self.diffusion.refine else {}

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
            losses = self._study(noisy)
            value = error + self._weigh(losses)
            return DiffusionLoss(value, nothing, error.detach(), nothing, torch.zeros_like(level_N), losses)

        seen = self.see(noisy, level_N, label_N, self._refined(noisy, level_N, label_N))
        thought = self._think(seen)
        bins_NX = bin_of(clean, config.bins).flatten(1)
        bins = self.thinker.judge(thought, bins_NX)
        if self.selector is not None and self.training:
            self.selector.watch(self.thinker.posts(thought), label_N, bins_error(thought.predictions, bins_NX))
        alone_N = torch.rand(rows, device=device) < config.base_share
        tick_N = self._drawn_tick(thought.certainties)
        here = torch.arange(rows, device=device)
        # A thought is certain of what it sees, not of what would suit the denoiser.
        certainty_N = thought.certainties[here, tick_N].detach()
        controlled = self.control(thought.states[here, tick_N], certainty_N)
        guide = self.guide(thought.predictions[here, tick_N], certainty_N, controlled.state, alone_N)
        error_N = (self.denoise(noisy, level_N, label_N, guide) - target).square().flatten(1).mean(-1)
        losses = {"bins": bins.value, **seen.losses, **controlled.losses, **self._study(noisy, seen)}
        if self.jepa is not None:
            uniform = torch.rand(rows, DRAWS, device=device)
            losses["jepa"] = self.jepa(seen, clean, label_N, self.nothing_fed(clean), uniform)
        value = error_N.mean() + self._weigh(losses)
        judged = torch.unflatten(thought.predictions[here, bins.tick], -1, (-1, config.bins)).argmax(-1)
        right = (judged == bins_NX).float().mean()
        guided, base = _mean(error_N, ~alone_N), _mean(error_N, alone_N)
        return DiffusionLoss(value, guided, base, right, bins.tick, losses)

    def after_update(self) -> list[Begun]:
        """Move decays back to where they mean something, and slow copies on; after every update.

        Says which weights began anew.
        """
        if self.jepa is not None:
            self.jepa.slow.update(self.senses)
        if self.thinker is None:
            return []
        self.thinker.project_decays()
        if self.selector is None:
            return []
        return self.selector.after_update(self.thinker.core, [self.state_reader])

    @property
    def state_reader(self) -> nn.Linear:
        """What in the denoiser reads a thought's state, its out sync first."""
        reader = self.denoiser.get_submodule("state.1")
        assert isinstance(reader, nn.Linear), "a state is normalised, then mapped"
        return reader

    def _study(self, noisy: Tensor, seen: Seen | None = None) -> dict[str, Tensor]:
        """What the denoiser's own patcher learns by, beside that of the senses."""
        if not isinstance(self.denoiser, DynamicDenoiser):
            return {}
        loss = self.denoiser.next_byte_loss(noisy)
        return {"entropy": loss if seen is None else loss + seen.losses.get("entropy", 0)}

    def _weigh(self, losses: Mapping[str, Tensor]) -> Tensor | int:
        return sum(self.diffusion.weights.of(name) * loss for name, loss in losses.items())

    def _think(self, seen: Seen) -> Musings:
        assert self.thinker is not None, "the model thinks"
        return self.thinker.think(self.thinker.context(seen.tokens, seen.hidden), len(seen.tokens))

    @torch.no_grad()
    def _refined(self, noisy: Tensor, level_N: Tensor, label_N: Tensor) -> dict[str, Tensor]:
        """What rows are handed while they learn: half of them what a first attempt gives, the others nothing."""
        fed = self.nothing_fed(noisy)
        if not self.diffusion.refine:
            return fed
        thought = self.think(noisy, level_N, label_N, fed)
        tick_N, here = most_certain(thought.certainties), torch.arange(len(noisy), device=noisy.device)
        certainty_N = thought.certainties[here, tick_N]
        state = self.control(thought.states[here, tick_N], certainty_N).state
        nobody_N = torch.zeros_like(certainty_N, dtype=torch.bool)
        guide = self.guide(thought.predictions[here, tick_N], certainty_N, state, nobody_N)
        predicted = self.denoise(noisy, level_N, label_N, guide)
        parts = self.schedule.take_apart(noisy, predicted, level_N, self.diffusion.target)
        tried = torch.rand(len(noisy), device=noisy.device) < 0.5
        found = self.hand_on(clipped(self.schedule, parts, level_N))
        return {name: value * tried.view(-1, *(1,) * (value.dim() - 1)) for name, value in found.items()}

    def _drawn_tick(self, certainties_NT: Tensor) -> Tensor:
        """[N]: a tick drawn at random for `any_tick` of the rows, the most certain one for the others."""
        rows, ticks = certainties_NT.shape
        drawn_N = torch.randint(ticks, (rows,), device=certainties_NT.device)
        draw_N = torch.rand(rows, device=certainties_NT.device) < self.diffusion.any_tick
        return torch.where(draw_N, drawn_N, most_certain(certainties_NT))


def _mean(values_N: Tensor, mask_N: Tensor) -> Tensor:
    """Of the chosen rows, 0 if there are none."""
    return (values_N.detach() * mask_N).sum() / mask_N.sum().clamp(min=1)
