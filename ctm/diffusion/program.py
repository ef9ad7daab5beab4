"""A diffusion model as a program: one thought is about one noisy image, and its end is a reverse step.

    image, level, label ── Encode ──> keys, values
    keys, values, state ── Tick ──> next state, prediction (bins of x_0), certainty, guide, attention
    image, level, label, next_level, eta, noise, abstained, prediction, certainty, guide ── Finish ──> next_image,
        estimate (of x_0)

`finish` reads prediction, certainty and guide of the tick that answers. A row that abstained takes the base path.
"""

# Shapes: B rows, S side, P patches, K bins, C = S * S * K, O out pairs, D neurons, h heads.

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.reverse import CLEAN, clipped, reverse_step
from ctm.frozen import CertaintyReadout
from ctm.model import CTM
from ctm.program import FrozenCore, Program, TensorSpec, pack_context, specify_state


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    """The tensors of `finish`, in the order of its arguments and results."""

    arguments: tuple[TensorSpec, ...]
    results: tuple[TensorSpec, ...]


def specify(model: EnhancedCTMDiffusion) -> Program:
    """The tensors of encode and tick.

    Raises:
        ValueError: it is a denoiser alone, which does not think.
    """
    core, diffusion = core_of(model), model.diffusion
    config, heads, tokens = core.config, core.config.heads, diffusion.tokens
    per_head = config.attention_width // heads
    return Program(
        inputs=_seen(model),
        context=(
            TensorSpec(name="keys", shape=(heads, tokens, per_head)),
            TensorSpec(name="values", shape=(heads, tokens, per_head)),
        ),
        state=specify_state(config),
        outputs=(
            TensorSpec(
                name="prediction", shape=config.answer_shape, role="prediction", description="logits over bins of x_0"
            ),
            TensorSpec(name="certainty", shape=(), role="certainty", description="1 - normalised entropy"),
            TensorSpec(name="guide", shape=(config.out_pairs + config.width,), description="out sync, activations"),
            TensorSpec(
                name="attention", shape=(heads, tokens), role="detail", description="weights over patches, by head"
            ),
        ),
    )


def specify_finish(model: EnhancedCTMDiffusion) -> Finish:
    """The tensors of finish."""
    image, program = (model.diffusion.side, model.diffusion.side), specify(model)
    of_tick = tuple(spec for spec in program.outputs if spec.role != "detail")
    return Finish(
        arguments=(
            *_seen(model),
            TensorSpec(
                name="next_level",
                shape=(),
                datatype="INT64",
                description="the level to step to; -1 is no noise",
                minimum=CLEAN,
                maximum=model.diffusion.levels - 2,
            ),
            TensorSpec(name="eta", shape=(), description="0 deterministic, 1 ancestral", minimum=0, maximum=1),
            TensorSpec(name="noise", shape=image, description="standard normal, of this step"),
            TensorSpec(
                name="abstained", shape=(), datatype="BOOL", role="abstained", description="takes the base path"
            ),
            *of_tick,
        ),
        results=(
            TensorSpec(name="next_image", shape=image),
            TensorSpec(name="estimate", shape=image, description="what the step took for the clean image"),
        ),
    )


def core_of(model: EnhancedCTMDiffusion) -> CTM:
    """The CTM of a diffusion model; raises ValueError when it has none."""
    if model.core is None:
        raise ValueError("a denoiser alone does not think, so it makes no program")
    return model.core


def _seen(model: EnhancedCTMDiffusion) -> tuple[TensorSpec, ...]:
    """What thought and denoiser see alike."""
    side, levels, classes = model.diffusion.side, model.diffusion.levels, model.diffusion.classes
    return (
        TensorSpec(name="image", shape=(side, side), description="noisy"),
        TensorSpec(
            name="level",
            shape=(),
            datatype="INT64",
            description="how noisy: 0 is the least",
            minimum=0,
            maximum=levels - 1,
        ),
        TensorSpec(
            name="label",
            shape=(),
            datatype="INT64",
            description="the class that is asked for",
            minimum=0,
            maximum=classes - 1,
        ),
    )


class Encode(nn.Module):
    """All of a noisy image that does not change over ticks."""

    def __init__(self, model: EnhancedCTMDiffusion) -> None:
        """Raises ValueError for a denoiser alone."""
        super().__init__()
        core_of(model)
        self.model = model

    def forward(self, image: Tensor, level: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        """[B, S, S], [B] and [B] to keys and values."""
        return pack_context(self.model.context(image, level, label))


class Tick(nn.Module):
    """One tick of rows that may each be at a different tick."""

    @torch.no_grad()
    def __init__(self, model: EnhancedCTMDiffusion, tick_cap: int, *, convolve: bool = False) -> None:
        """Freeze a model; the arguments are as for a CTM's `Tick`."""
        super().__init__()
        core = core_of(model)
        self.core = FrozenCore(core, tick_cap, convolve=convolve)
        self.answer_shape = core.config.answer_shape
        self.readout, self.certainty = core.readout, CertaintyReadout(self.answer_shape)

    def forward(
        self,
        keys: Tensor,
        values: Tensor,
        trace: Tensor,
        post: Tensor,
        action_sum: Tensor,
        out_sum: Tensor,
        ticks_done: Tensor,
    ) -> tuple[Tensor, ...]:
        """Arguments and results in the order of `specify`: context, state; next state, outputs."""
        state, sync_out, attention = self.core(keys, values, None, trace, post, action_sum, out_sum, ticks_done)
        prediction = self.readout(sync_out).unflatten(-1, self.answer_shape)
        guide = torch.cat([sync_out, state[1]], dim=-1)
        return *state, prediction, self.certainty(prediction), guide, attention


class ReverseStep(nn.Module):
    """The program's `finish`."""

    def __init__(self, model: EnhancedCTMDiffusion) -> None:
        super().__init__()
        core_of(model)
        self.model = model

    def forward(
        self,
        image: Tensor,
        level: Tensor,
        label: Tensor,
        next_level: Tensor,
        eta: Tensor,
        noise: Tensor,
        abstained: Tensor,
        prediction: Tensor,
        certainty: Tensor,
        guide: Tensor,
    ) -> tuple[Tensor, ...]:
        """Arguments and results in the order of `specify_finish`."""
        model = self.model
        predicted = model.denoise(image, level, label, model.guide(prediction.flatten(1), certainty, guide, abstained))
        parts = model.schedule.take_apart(image, predicted, level, model.diffusion.target)
        parts = clipped(model.schedule, parts, level)
        return reverse_step(model.schedule, parts, level, next_level, noise, eta), parts.clean
