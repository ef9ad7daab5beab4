"""Drawing samples through an exported program as a server does it, link by link: encode, ticks, finish."""

# Shapes: N rows, R links, S side.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ctm.diffusion.reverse import CLEAN, spaced_levels
from ctm.program import TensorSpec
from ctm.servable import ServableDiffusion
from export.artefact import Array, Artefact

NEXT = "next_"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is drawn."""

    labels: Tensor
    """[N]"""
    noise: Callable[[int], Tensor]
    """Of a number, standard normal [N, S, S]: 0 is what sampling begins with, k what link k adds."""
    links: int
    eta: float
    certainty_threshold: float
    abstain_below: float


class Drawn(NamedTuple):
    """Samples, and how they came about."""

    images: Array
    """[N, S, S]"""
    estimates: Array
    """[R, N, S, S] what each link took for the clean image."""
    certainties: Array
    """[R, N] of the tick that answers."""
    abstained: Array
    """[R, N] truth values."""
    ticks_used: Array
    """[R, N]"""
    margin: float
    """How near any certainty came to a threshold that it was held against."""


def draw(servable: ServableDiffusion, artefact: Artefact, wanted: Wanted) -> Drawn:
    """One image a label."""
    program, rows = servable.program, len(wanted.labels)
    given = {spec.name: np.zeros((rows, *spec.shape), np.float32) for spec in program.inputs}
    given |= {"image": wanted.noise(0).numpy(), "label": wanted.labels.numpy()}
    start = [np.repeat(value.numpy()[None], rows, axis=0) for value in servable.start().values()]
    levels = [*map(int, spaced_levels(servable.model.diffusion.levels, wanted.links)), CLEAN]
    links, margin = [], inf
    for link, (level, following) in enumerate(pairwise(levels), start=1):
        given["level"] = np.full(rows, level)
        context = artefact.encode(_ordered(program.inputs, given))
        thought = _think(servable, artefact, context, start, wanted)
        ends = {
            "next_level": np.full(rows, following),
            "eta": np.full(rows, wanted.eta, np.float32),
            # The last link adds nothing.
            "noise": np.zeros_like(given["image"]) if following == CLEAN else wanted.noise(link).numpy(),
            "abstained": thought.certainty < wanted.abstain_below,
        }
        results = artefact.finish(_ordered(program.finish_inputs, given | thought.answer | ends))
        found = {spec.name: value for spec, value in zip(program.finish_outputs, results, strict=True)}
        given |= {name.removeprefix(NEXT): value for name, value in found.items() if name.startswith(NEXT)}
        links.append((found["estimate"], thought.certainty, ends["abstained"], thought.ticks_used))
        near = float(np.abs(thought.certainty - wanted.abstain_below).min())
        margin = min(margin, thought.margin, near)
    estimates, certainties, abstained, ticks_used = (np.stack(kept) for kept in zip(*links, strict=True))
    return Drawn(given["image"], estimates, certainties, abstained, ticks_used, margin)


class _Thought(NamedTuple):
    answer: dict[str, Array]
    """Every output of the tick that answers."""
    certainty: Array
    """[N]"""
    ticks_used: Array
    """[N]"""
    margin: float


def _think(
    servable: ServableDiffusion,
    artefact: Artefact,
    context: Sequence[Array],
    start: Sequence[Array],
    wanted: Wanted,
) -> _Thought:
    """Until every row is certain; the most certain tick so far answers."""
    program, certain, rows = servable.program, wanted.certainty_threshold, len(wanted.labels)
    name = next(spec.name for spec in program.outputs if spec.role == "certainty")
    done = next((spec.name for spec in program.outputs if spec.role == "done"), None)
    state, answer = list(start), dict[str, Array]()
    most_N, used_N, thinks_N = np.full(rows, -1.0, np.float32), np.zeros(rows, np.int64), np.ones(rows, bool)
    margin = inf
    for _ in range(servable.config.ticks):
        results = artefact.tick([*context, *state])
        state, outputs = results[: len(program.state)], results[len(program.state) :]
        found = {spec.name: value for spec, value in zip(program.outputs, outputs, strict=True)}
        certainty_N = found[name].clip(0, 1)
        used_N += thinks_N
        better_N = thinks_N & (certainty_N > most_N)
        for key, value in found.items():
            chosen = better_N.reshape(-1, *(1,) * (value.ndim - 1))
            answer[key] = np.where(chosen, value, answer.get(key, value))
        most_N = np.where(better_N, certainty_N, most_N)
        margin = min(margin, float(np.abs(certainty_N - certain)[thinks_N].min(initial=inf)))
        thinks_N &= certainty_N < certain
        if done is not None:
            thinks_N &= found[done] < 0.5
    return _Thought(answer, most_N, used_N, margin)


def _ordered(specs: Sequence[TensorSpec], values: Mapping[str, Array]) -> list[Array]:
    return [np.ascontiguousarray(values[spec.name]) for spec in specs]
