"""CTM-controlled diffusion: at every reverse step a CTM thinks about the noisy image and guides the denoiser.

    noisy, level, label ── CTM, tick by tick ──> bins of x_0, certainty, guide ─┐
    noisy, level, label ── denoiser <── strength = certainty, 0 if it abstains ─┘──> noise (or velocity)

One network is both paths: without a thought, or with one of strength 0, it gives the base prediction.
"""

# Shapes: N rows, T ticks, S side, K bins, C = S * S * K; of a thought's state [N, S], S is its width.

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.certainty import most_certain
from ctm.config import CTMConfig
from ctm.diffusion.bins import bin_of, expected
from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.control import Control
from ctm.diffusion.denoiser import Denoiser, Guide
from ctm.diffusion.lesson import DiffusionLoss, Learned, Lesson, Task, Told, joined
from ctm.diffusion.noise import NoiseSchedule, Parts
from ctm.diffusion.pipeline import overlapped, sent
from ctm.diffusion.reverse import clipped
from ctm.diffusion.senses import Fed, Seen, Senses
from ctm.diffusion.thinker import Musings, PlainThinker, Thinker
from ctm.model import CTM


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
            self.thinker = PlainThinker(CTM(core, seed=seed))
            self.thinker.recomputes = diffusion.checkpoint_gradients
            self.senses, self.control = Senses(diffusion), Control(diffusion)
            state_width = self.thinker.state_width
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
        if self.diffusion.pipeline is not None:
            there = self.denoiser.device
            found: Tensor = self.denoiser(*(sent(x, there) for x in (noisy, level_N, label_N)), sent(guide, there))
            return found.to(noisy.device)
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
        config, rows, device = self.diffusion, len(clean), self.schedule.signal.device
        clean, label_N = sent(clean, device), sent(label_N, device)
        level_N = torch.randint(config.levels, (rows,), device=device)
        noise = torch.randn_like(clean)
        noisy = self.schedule.add(clean, noise, level_N)
        target = self.schedule.target(clean, noise, level_N, config.target)
        if self.thinker is None:
            error = F.mse_loss(self.denoise(noisy, level_N, label_N, None), target)
            nothing = error.detach() * 0
            return DiffusionLoss(error, nothing, error.detach(), nothing, torch.zeros_like(level_N), {})

        nobody_N = torch.zeros_like(level_N, dtype=torch.bool)
        tried_N = torch.rand(rows, device=device) < 0.5 if config.refine else nobody_N
        alone_N = torch.rand(rows, device=device) < config.base_share
        tick_N = torch.randint(self.thinker.config.ticks, (rows,), device=device)
        by_drawn_N = torch.rand(rows, device=device) < config.any_tick
        lesson = Lesson(clean, label_N, level_N, noise, noisy, target, tried_N, alone_N, tick_N, by_drawn_N)
        parts = lesson.parts(1 if config.pipeline is None else config.pipeline.parts)
        made = overlapped(parts, self._tell, self._predict)
        return joined([self._assess(told, predicted) for told, predicted in made], alone_N, config.weights)

    def _tell(self, lesson: Lesson) -> Told:
        """Think about rows; what follows from it, and what the denoiser is sent."""
        assert self.thinker is not None, "the model thinks"
        noisy, level_N, label_N = lesson.noisy, lesson.level, lesson.label
        seen = self.see(noisy, level_N, label_N, self._refined(noisy, level_N, label_N, lesson.tried))
        thought = self._think(seen)
        bin_NX = bin_of(lesson.clean, self.diffusion.bins).flatten(1)
        bins = self.thinker.judge(thought, bin_NX)
        tick_N = torch.where(lesson.by_drawn, lesson.tick, most_certain(thought.certainties))
        here = torch.arange(len(noisy), device=noisy.device)
        # A thought is certain of what it sees, not of what would suit the denoiser.
        certainty_N = thought.certainties[here, tick_N].detach()
        controlled = self.control(thought.states[here, tick_N], certainty_N)
        guide = self.guide(thought.predictions[here, tick_N], certainty_N, controlled.state, lesson.alone)
        judged = torch.unflatten(thought.predictions[here, bins.tick], -1, (-1, self.diffusion.bins)).argmax(-1)
        right = (judged == bin_NX).float().mean()
        task = sent(Task(noisy, level_N, label_N, guide), self.denoiser.device)
        return Told(lesson, task, {"bins": bins.value, **seen.losses, **controlled.losses}, right, bins.tick)

    def _predict(self, told: Told) -> Tensor:
        """What the denoiser makes of it, where it is."""
        predicted: Tensor = self.denoiser(*told.task)
        return predicted

    def _assess(self, told: Told, predicted: Tensor) -> Learned:
        """How wrong that was; what is descended for it is added here."""
        error_N = (sent(predicted, told.lesson.target.device) - told.lesson.target).square().flatten(1).mean(-1)
        return Learned(error_N, told.losses, told.right, told.tick)

    def place(self) -> None:
        """Put thought and denoiser where the pipeline has them; nothing without one."""
        if self.diffusion.pipeline is not None:
            first, second = self.diffusion.pipeline.devices
            self.to(first)
            self.denoiser.to(second)

    def after_update(self) -> None:
        """Move decays back to where they mean something; after every update."""
        if self.thinker is not None:
            self.thinker.project_decays()

    def _think(self, seen: Seen) -> Musings:
        assert self.thinker is not None, "the model thinks"
        return self.thinker.think(self.thinker.context(seen.tokens, seen.hidden), len(seen.tokens))

    @torch.no_grad()
    def _refined(self, noisy: Tensor, level_N: Tensor, label_N: Tensor, tried_N: Tensor) -> dict[str, Tensor]:
        """What rows are handed while they learn: those chosen what a first attempt gives, the others nothing."""
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
        found = self.hand_on(clipped(self.schedule, parts, level_N))
        return {name: value * tried_N.view(-1, *(1,) * (value.dim() - 1)) for name, value in found.items()}
