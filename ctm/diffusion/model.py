"""CTM-controlled diffusion: at every reverse step a CTM thinks about the noisy image and guides the denoiser.

    noisy, level, label ── CTM, tick by tick ──> bins of x_0, certainty, guide ─┐
    noisy, level, label ── denoiser <── strength = certainty, 0 if it abstains ─┘──> noise (or velocity)

One network is both paths: without a thought, or with one of strength 0, it gives the base prediction.
"""

# Shapes: N rows, T ticks, S side, K bins, C = S * S * K; of a thought's state [N, S], S is its width.

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.certainty import most_certain
from ctm.config import CTMConfig
from ctm.diffusion.bins import bin_of, expected
from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.control import OTHER, Control, Controlled, Outcome
from ctm.diffusion.cores import build_thinker
from ctm.diffusion.denoiser import Denoiser, Guide, Paths
from ctm.diffusion.dynamic_denoiser import DynamicDenoiser
from ctm.diffusion.jepa import DRAWS
from ctm.diffusion.lesson import DiffusionLoss, Learned, Lesson, Task, Told, joined
from ctm.diffusion.neuron_selection import Begun
from ctm.diffusion.noise import NoiseSchedule, Parts
from ctm.diffusion.pair_selector import PairSelector
from ctm.diffusion.pipeline import overlapped, sent
from ctm.diffusion.reverse import clipped
from ctm.diffusion.senses import Fed, Seen, Senses
from ctm.diffusion.senses_jepa import SensesJEPA
from ctm.diffusion.thinker import Musings, Thinker, bins_error


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
            self.thinker.recomputes, self.thinker.traces = diffusion.checkpoint_gradients, diffusion.watches
            self.senses, self.control = Senses(diffusion), Control(diffusion, core)
            state_width = self.control.state_width
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
        if self.diffusion.pipeline is not None:
            there = self.denoiser.device
            found: Tensor = self.denoiser(*(sent(x, there) for x in (noisy, level_N, label_N)), sent(guide, there))
            return found.to(noisy.device)
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
        config, rows, device = self.diffusion, len(clean), self.schedule.signal.device
        clean, label_N = sent(clean, device), sent(label_N, device)
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

        nobody_N = torch.zeros_like(level_N, dtype=torch.bool)
        tried_N = torch.rand(rows, device=device) < 0.5 if config.refine else nobody_N
        alone_N = torch.rand(rows, device=device) < config.base_share
        tick_N = torch.randint(self.thinker.config.ticks, (rows,), device=device)
        by_drawn_N = torch.rand(rows, device=device) < config.any_tick
        other_N, watches_N = self._others(level_N) if config.watches else (level_N, nobody_N)
        stretches = torch.rand(rows, DRAWS if self.jepa is not None else 0, device=device)
        chance = tried_N, alone_N, tick_N, by_drawn_N, other_N, watches_N, stretches
        lesson = Lesson(clean, label_N, level_N, noise, noisy, target, *chance)
        parts = lesson.parts(1 if config.pipeline is None else config.pipeline.parts)
        made = overlapped(parts, self._tell, self._predict)
        return joined([self._assess(told, predicted) for told, predicted in made], alone_N, config.weights)

    def _tell(self, lesson: Lesson) -> Told:
        """Think about rows; what follows from it, and what the denoiser is sent."""
        assert self.thinker is not None, "the model thinks"
        noisy, level_N, label_N = lesson.noisy, lesson.level, lesson.label
        watched, other_estimate = self._watched(lesson)
        fed = self._refined(noisy, level_N, label_N, lesson.tried) | watched
        seen = self.see(noisy, level_N, label_N, fed)
        thought = self._think(seen)
        bin_NX = bin_of(lesson.clean, self.diffusion.bins).flatten(1)
        bins = self.thinker.judge(thought, bin_NX)
        if self.selector is not None and self.training:
            self.selector.watch(self.thinker.posts(thought), label_N, bins_error(thought.predictions, bin_NX))
        tick_N = torch.where(lesson.by_drawn, lesson.tick, most_certain(thought.certainties))
        here = torch.arange(len(noisy), device=noisy.device)
        # A thought is certain of what it sees, not of what would suit the denoiser.
        certainty_N = thought.certainties[here, tick_N].detach()
        controlled = self.control(thought.states[here, tick_N], certainty_N, level_N, fed)
        guide = self.guide(thought.predictions[here, tick_N], certainty_N, controlled.state, lesson.alone)
        judged = torch.unflatten(thought.predictions[here, bins.tick], -1, (-1, self.diffusion.bins)).argmax(-1)
        right = (judged == bin_NX).float().mean()
        losses = {"bins": bins.value, **seen.losses, **self._study(noisy, seen)}
        if self.jepa is not None:
            losses["jepa"] = self.jepa(seen, lesson.clean, label_N, self.nothing_fed(noisy), lesson.stretches)
        task = sent(Task(noisy, level_N, label_N, guide), self.denoiser.device)
        return Told(lesson, task, losses, right, bins.tick, controlled, other_estimate)

    def _predict(self, told: Told) -> Paths:
        """What the denoiser makes of it, where it is."""
        return self.denoiser.paths(*told.task)

    def _assess(self, told: Told, paths: Paths) -> Learned:
        """How wrong that was, and what is learned by what came of guiding."""
        guided, base = sent(paths, told.lesson.target.device)
        error_N = _squared(guided, told.lesson.target)
        losses = dict(told.losses)
        if base is not None:
            losses["base"] = _squared(base, told.lesson.target).mean()
        if self.control.learns:
            losses |= self._rewards(told, guided, error_N)
        return Learned(error_N, losses, told.right, told.tick)

    def _rewards(self, told: Told, predicted: Tensor, error_N: Tensor) -> Mapping[str, Tensor]:
        lesson = told.lesson
        outcome = Outcome(lesson.label, ~lesson.alone, error_N)
        if self.diffusion.basal_ganglia is not None:
            with torch.no_grad():
                base = self.denoise(lesson.noisy, lesson.level, lesson.label, None)
            outcome = outcome._replace(base_error=_squared(base, lesson.target))
        if self.diffusion.mirror is not None:
            estimate = self._estimated(lesson.noisy, predicted, lesson.level).clean
            outcome = outcome._replace(clean=lesson.clean, estimate=estimate, other_estimate=told.other_estimate)
        return self.control.losses(told.controlled, outcome)

    def place(self) -> None:
        """Put thought and denoiser where the pipeline has them; nothing without one."""
        if self.diffusion.pipeline is not None:
            first, second = self.diffusion.pipeline.devices
            self.to(first)
            self.denoiser.to(second)

    def after_update(self) -> list[Begun]:
        """Move decays back to where they mean something, and slow copies on; says which weights began anew."""
        if self.thinker is None:
            return []
        self.thinker.project_decays()
        if self.jepa is not None:
            self.jepa.slow.update(self.senses)
        return [] if self.selector is None else self.selector.after_update(self.thinker.core, [self.denoiser.state_in])

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
    def _refined(self, noisy: Tensor, level_N: Tensor, label_N: Tensor, tried_N: Tensor) -> dict[str, Tensor]:
        """What rows are handed while they learn: those chosen what a first attempt gives, the others nothing."""
        if not self.diffusion.refine:
            return self.nothing_fed(noisy)
        state, parts = self._attempt(noisy, level_N, label_N)
        found = self.hand_on(parts, state)
        return {name: value * tried_N.view(-1, *(1,) * (value.dim() - 1)) for name, value in found.items()}

    @torch.no_grad()
    def _watched(self, lesson: Lesson) -> tuple[dict[str, Tensor], Tensor | None]:
        """What rows are told of another thought, about more of the same noise; and what it took for clean images."""
        if not self.diffusion.watches:
            return {}, None
        noisy = self.schedule.add(lesson.clean, lesson.noise, lesson.other_level)
        state, parts = self._attempt(noisy, lesson.other_level, lesson.label)
        return {OTHER: self.control.hand_on(state)[OTHER] * lesson.watches.view(-1, 1, 1)}, parts.clean

    def _others(self, level_N: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows while they learn: the level of the thought they watch, and whether they do, which half of them do."""
        last = self.diffusion.levels - 1
        further_N = torch.rand(len(level_N), device=level_N.device) * (last - level_N)
        watches_N = (torch.rand(len(level_N), device=level_N.device) < 0.5) & (level_N < last)
        return (level_N + 1 + further_N.long()).clamp(max=last), watches_N

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


def _squared(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error of each row, [N]."""
    return (found - wanted).square().flatten(1).mean(-1)
