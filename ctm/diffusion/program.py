"""A diffusion model as a program: one thought is about one noisy image, and its end is a reverse step.

    image, level, label ── Encode ──> keys, values, mask
    keys, values, mask, state ── tick ──> next state, prediction (bins of x_0), certainty, guide, attention
    image, level, label, next_level, eta, noise, abstained, prediction, certainty, guide ── Finish ──> next_image,
        estimate (of x_0)

`finish` reads prediction, certainty and guide of the tick that answers. A row that abstained takes the base path.
"""

# Shapes: B rows, S side, P patches, K bins, C = S * S * K, O out pairs, D neurons, h heads.

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ctm.diffusion.control import OTHER
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.reverse import CLEAN, clipped, reverse_step
from ctm.diffusion.thinker import Thinker
from ctm.diffusion.wina import freeze_norms
from ctm.program import Program, TensorSpec

HIDDEN = -1e9
"""Added to the attention score of a token that is not there: its weight is exactly 0."""


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
    thinker, tokens = thinker_of(model), model.senses.tokens
    heads = thinker.config.heads
    per_head = thinker.config.attention_width // heads
    fed = (
        TensorSpec(name=name, shape=shape, description="handed on by the reverse step before; zeros at first")
        for name, shape in model.fed.items()
    )
    return Program(
        inputs=(*_seen(model), *fed),
        context=(
            TensorSpec(name="keys", shape=(heads, tokens, per_head)),
            TensorSpec(name="values", shape=(heads, tokens, per_head)),
            TensorSpec(name="mask", shape=(tokens,), description="0 for a token, very low where there is none"),
        ),
        state=thinker.state_specs(),
        outputs=thinker.output_specs(tokens),
    )


def specify_finish(model: EnhancedCTMDiffusion) -> Finish:
    """The tensors of finish."""
    image, program = (model.diffusion.side, model.diffusion.side), specify(model)
    of_tick = tuple(spec for spec in program.outputs if spec.role not in ("detail", "done"))
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
            *(spec for spec in program.inputs if spec.name == OTHER),
        ),
        results=(
            TensorSpec(name="next_image", shape=image),
            TensorSpec(name="estimate", shape=image, description="what the step took for the clean image"),
            *(TensorSpec(name=f"next_{name}", shape=shape) for name, shape in model.fed.items()),
        ),
    )


def thinker_of(model: EnhancedCTMDiffusion) -> Thinker:
    """What thinks in a diffusion model; raises ValueError when nothing does."""
    if model.thinker is None:
        raise ValueError("a denoiser alone does not think, so it makes no program")
    return model.thinker


def tick(model: EnhancedCTMDiffusion, tick_cap: int, *, convolve: bool = False) -> nn.Module:
    """One tick of rows that may each be at a different tick; the arguments are as for a CTM's `Tick`."""
    return thinker_of(model).frozen(tick_cap, convolve=convolve)


def _named(model: EnhancedCTMDiffusion, *fed: Tensor | None) -> dict[str, Tensor]:
    """What is fed back, by name: a traced function cannot have arguments of any name."""
    return {name: value for name, value in zip(model.fed, fed, strict=False) if value is not None}


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
        self.thinker, self.model = thinker_of(model), model

    def forward(
        self, image: Tensor, level: Tensor, label: Tensor, first: Tensor | None = None, second: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """[B, S, S], [B] and [B], and what is fed back in order, to keys, values and mask."""
        seen = self.model.see(image, level, label, _named(self.model, first, second))
        context = self.thinker.context(seen.tokens, None)
        # Of the images' own numbers, so that its rows are as free as theirs.
        shown_BL = torch.zeros_like(seen.tokens[..., 0])
        mask = shown_BL if seen.hidden is None else shown_BL.masked_fill(seen.hidden, HIDDEN)
        return context.keys, context.values, mask


class ReverseStep(nn.Module):
    """The program's `finish`."""

    def __init__(self, model: EnhancedCTMDiffusion) -> None:
        super().__init__()
        thinker_of(model)
        if model.diffusion.wina is not None:
            # Norms of weights that do not change any more need not be computed at every run.
            model = copy.deepcopy(model)
            freeze_norms(model)
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
        other: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Arguments and results in the order of `specify_finish`."""
        model = self.model
        fed = {} if other is None else {OTHER: other}
        state = model.control(guide, certainty, level, fed).state
        guided = model.guide(prediction.flatten(1), certainty, state, abstained)
        predicted = model.denoise(image, level, label, guided)
        parts = model.schedule.take_apart(image, predicted, level, model.diffusion.target)
        parts = clipped(model.schedule, parts, level)
        next_image = reverse_step(model.schedule, parts, level, next_level, noise, eta)
        return next_image, parts.clean, *model.hand_on(parts, guide).values()
