"""Does an artefact end thoughts as the model does, and does a whole sample drawn through it come out as the model's?

`finish` is compared from eager's own values. Then the model draws samples its own way, and the artefact draws the same
link by link: rounding of every link goes on into all that follow, as it does in a server.
"""

# Shapes: N rows, R links, S side.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ctm.diffusion.reverse import CLEAN
from ctm.diffusion.sampling import Samples, sample
from ctm.frontier import NEVER
from ctm.servable import ServableDiffusion
from export.agreement import ROW_COUNTS, TOLERANCE, arrays, check, first, relative_difference
from export.artefact import Array, Artefact
from export.draw import Drawn, Wanted, draw
from export.errors import DisagreementError

ROWS, LINKS, ETA, SEED = 16, 12, 0.5, 0
CHAIN_TOLERANCE = 1 / 255
"""Half of what tells two of 256 grey values apart, where black is -1 and white 1: nobody can see it. Each link may be
off by `TOLERANCE` and hands that on to the next; a dozen links add up to a part of this, and a graph that computes
something else is off by far more."""
MARGIN = 5e-5
"""Of a threshold from every certainty: many times what rounding does to one."""
_TRIES = 12
_NOTHING = (NEVER, 0.0)
"""Thresholds that stop no thought and let none abstain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainAgreement:
    """How closely an artefact follows eager beyond single ticks. Differences are relative to max(1, largest value)."""

    finish: float
    """Largest difference of any result of `finish`."""
    images: float
    """Of what the run's last links left."""
    estimates: float
    """Of what any link took for the clean image."""
    equal_stop_ticks: float
    """Share of thoughts, [R, N], as is the next."""
    equal_abstain_masks: float
    rows: int
    links: int
    eta: float
    certainty_threshold: float
    abstain_below: float
    abstaining: float
    """Share of the thoughts that abstain."""
    certain: float
    """Share of the thoughts that stop before their ticks are spent."""
    tolerance: float
    """Of the images."""


def measure_chain(servable: ServableDiffusion, artefact: Artefact, inputs: Sequence[Tensor]) -> ChainAgreement:
    """Compare an artefact with eager.

    Args:
        inputs: of the program, each [N, ...], at least as many rows as the largest of `ROW_COUNTS`.

    Raises:
        DisagreementError: a difference is beyond the tolerance, or a thought stops or abstains where eager's does not.
    """
    finish = max(_finish(servable, artefact, first(inputs, count)) for count in ROW_COUNTS)
    wanted, drawn = _draw(servable, artefact)
    theirs = sample(
        servable.model,
        wanted.labels,
        wanted.noise,
        steps=wanted.links,
        eta=wanted.eta,
        certainty_threshold=wanted.certainty_threshold,
        confidence_threshold=wanted.abstain_below,
    )
    return _compare(artefact.backend, wanted, drawn, theirs, finish, servable.config.ticks)


def _compare(backend: str, wanted: Wanted, drawn: Drawn, theirs: Samples, finish: float, ticks: int) -> ChainAgreement:
    equal_ticks = float((drawn.ticks_used == theirs.ticks_used.numpy()).mean())
    equal_masks = float((drawn.abstained == theirs.abstained.numpy()).mean())
    for what, equal in (("stop on another tick", equal_ticks), ("abstain otherwise", equal_masks)):
        if equal < 1:
            raise DisagreementError(
                f"{backend} sampling: of {drawn.abstained.size} thoughts {1 - equal:.2%} {what} than eager's; the "
                f"thresholds are {drawn.margin:.1g} and more from any certainty, so none may"
            )
    images = relative_difference(drawn.images, theirs.images.numpy())
    estimates = relative_difference(drawn.estimates, theirs.estimates.numpy())
    # In much noise an estimate divides by the little that is left of the image, and rounding with it: not judged.
    check(images, CHAIN_TOLERANCE, f"{backend} sampling, {wanted.links} links: images")
    return ChainAgreement(
        finish=finish,
        images=images,
        estimates=estimates,
        equal_stop_ticks=equal_ticks,
        equal_abstain_masks=equal_masks,
        rows=len(wanted.labels),
        links=wanted.links,
        eta=wanted.eta,
        certainty_threshold=wanted.certainty_threshold,
        abstain_below=wanted.abstain_below,
        abstaining=float(drawn.abstained.mean()),
        certain=float((drawn.ticks_used < ticks).mean()),
        tolerance=CHAIN_TOLERANCE,
    )


@torch.inference_mode()
def _finish(servable: ServableDiffusion, artefact: Artefact, inputs: Sequence[Tensor]) -> float:
    """The largest difference of any result, given eager's own values at the last tick; half of the rows abstain."""
    program, rows = servable.program, len(inputs[0])
    generator = torch.Generator().manual_seed(SEED)
    *_, last = servable.eager_ticks(inputs)
    values = {spec.name: value for spec, value in zip(program.inputs, inputs, strict=True)}
    values |= {
        "next_level": (torch.rand(rows, generator=generator) * (values["level"] + 1)).long() + CLEAN,
        "eta": torch.rand(rows, generator=generator),
        "noise": torch.randn(values["image"].shape, generator=generator),
        "abstained": torch.arange(rows) % 2 == 0,
    }
    outputs = last.results[len(program.state) :]
    values |= {spec.name: value for spec, value in zip(program.outputs, outputs, strict=True)}
    arguments = [values[spec.name] for spec in program.finish_inputs]
    found, expected = artefact.finish(arrays(arguments)), arrays(servable.finish()(*arguments))
    worst = 0.0
    for spec, value, theirs in zip(program.finish_outputs, found, expected, strict=True):
        worst = max(worst, different := relative_difference(value, theirs))
        check(different, TOLERANCE, f"{artefact.backend} finish, {rows} rows: {spec.name}")
    return worst


def _draw(servable: ServableDiffusion, artefact: Artefact) -> tuple[Wanted, Drawn]:
    """A seeded run in which some thoughts stop early and some abstain, by thresholds that rounding cannot cross."""
    diffusion = servable.model.diffusion

    def noise(link: int) -> Tensor:
        return torch.randn(ROWS, diffusion.side, diffusion.side, generator=torch.Generator().manual_seed(SEED + link))

    def drawn(certain: float, abstain_below: float) -> tuple[Wanted, Drawn]:
        wanted = Wanted(
            labels=torch.arange(ROWS) % diffusion.classes,
            noise=noise,
            links=min(LINKS, diffusion.levels),
            eta=ETA,
            certainty_threshold=certain,
            abstain_below=abstain_below,
        )
        return wanted, draw(servable, artefact, wanted)

    free = drawn(*_NOTHING)
    for thresholds in _gaps(free[1].certainties):
        run = drawn(*thresholds)
        if run[1].margin >= MARGIN:
            return run
    return free


def _gaps(certainties: Array) -> Iterator[tuple[float, float]]:
    """Thresholds between certainties, the widest gaps first: to stop by in the upper half, to abstain in the lower."""
    found = np.sort(certainties, axis=None)
    lower, upper = found[len(found) // 6 : len(found) // 2], found[len(found) // 2 : -len(found) // 6]
    middles = []
    for some in (upper, lower):
        widest = np.argsort(-np.diff(some))[:_TRIES]
        middles.append([float(some[place] + some[place + 1]) / 2 for place in widest])
    return zip(*middles, strict=True)
