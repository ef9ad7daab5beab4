"""Does an artefact compute what the model does? Tick by tick from the model's own states, and left to itself.

The model here is the one that was trained, not the program made from it: what composing its layers changes counts too.
Inputs that a server cuts to windows are compared whole and cut.
"""

# Shapes: N rows, T ticks, C chunks of the rows, 2: certainty and energy.

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from ctm.energy import StopRule, stop
from ctm.program import Program
from ctm.servable import Servable
from export.artefact import Array, Artefact
from export.errors import DisagreementError
from export.windows import encode_as_served

ROW_COUNTS = (1, 2, 7, 32)
TOLERANCE = 1e-4
EQUAL_STOP_TICKS = 0.999
_CHUNK = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How closely an artefact follows eager. Differences are relative to max(1, largest value of that tensor)."""

    one_tick: tuple[float, ...]
    """[T] largest difference of any result after one tick from eager's own state."""
    free_running: tuple[float, ...]
    """[T] the same when each side runs on its own states."""
    equal_stop_ticks: float
    """Share of free-running rows that stop on the same tick as eager's."""
    row_counts: tuple[int, ...]
    tolerance: float
    rows: int
    """Rows that ran freely."""


def measure_agreement(
    servable: Servable,
    artefact: Artefact,
    inputs: Sequence[Tensor],
    threshold: float | None,
    *,
    energy_threshold: float | None = None,
    energy_delta: float | None = None,
    row_counts: Sequence[int] = ROW_COUNTS,
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Compare an artefact with eager.

    Args:
        inputs: each [N, ...], at least as many rows as the largest of `row_counts`; all of them run freely.
        threshold: the certainty at which rows stop. Where no rule at all is shipped the median certainty of eager's
            ticks stands in, and the share of equal stop ticks is recorded but decides nothing.
        energy_threshold, energy_delta: at which rows stop as well; None where they are not shipped.

    Raises:
        DisagreementError: a difference is beyond the tolerance, or too many rows stop at another tick.
    """
    rows = len(inputs[0])
    assert rows >= max(row_counts), f"{rows} rows cannot be taken {max(row_counts)} at a time"
    by_count = [_one_tick(servable, artefact, first(inputs, count), tolerance) for count in row_counts]
    chunks = zip(*(torch.split(tensor, _CHUNK) for tensor in inputs), strict=True)
    difference_CT, eager_C2NT, artefact_C2NT = zip(
        *(_free_running(servable, artefact, chunk) for chunk in chunks), strict=True
    )
    shipped = StopRule(
        certainty=inf if threshold is None else threshold,
        energy=-inf if energy_threshold is None else energy_threshold,
        delta=energy_delta or 0.0,
    )
    seen = np.concatenate(eager_C2NT, axis=1), np.concatenate(artefact_C2NT, axis=1)
    return Agreement(
        one_tick=tuple(np.max(by_count, axis=0).tolist()),
        free_running=tuple(np.max(difference_CT, axis=0).tolist()),
        equal_stop_ticks=_equal_stop_ticks(*seen, shipped, artefact.backend),
        row_counts=tuple(row_counts),
        tolerance=tolerance,
        rows=rows,
    )


def _equal_stop_ticks(eager_2NT: Array, artefact_2NT: Array, shipped: StopRule, backend: str) -> float:
    """The share of rows that stop on the same tick; too few are refused."""
    rule = StopRule(certainty=float(np.median(eager_2NT[0]))) if shipped == StopRule() else shipped
    (eager_N, *_), (artefact_N, *_) = (stop(seen[0], seen[1], rule) for seen in (eager_2NT, artefact_2NT))
    equal = float((eager_N == artefact_N).mean())
    if rule == shipped and equal < EQUAL_STOP_TICKS:
        raise DisagreementError(
            f"{backend}: of {len(eager_N)} rows {equal:.2%} stop on the same tick as eager's by certainty "
            f"{rule.certainty:g}, energy {rule.energy:g}, change of energy {rule.delta:g}; at least "
            f"{EQUAL_STOP_TICKS:.1%} must"
        )
    return equal


@torch.inference_mode()
def _one_tick(servable: Servable, artefact: Artefact, inputs: Sequence[Tensor], tolerance: float) -> Array:
    """The largest difference at each tick, [T]."""
    rows, backend, program = len(inputs[0]), artefact.backend, servable.program
    context = arrays(servable.eager_context(inputs))
    found = artefact.encode(arrays(inputs))
    for spec, value, expected in zip(program.context, found, context, strict=True):
        check(relative_difference(value, expected), tolerance, f"{backend} encode, {rows} rows: {spec.name}")

    contexts = {"": context}
    if any(spec.buckets for spec in program.inputs):
        contexts[" of cut inputs"] = encode_as_served(artefact, program, arrays(inputs))
    names = [f"next_{spec.name}" for spec in program.state] + [spec.name for spec in program.outputs]
    worst = []
    for number, (arguments, expected_results) in enumerate(servable.eager_ticks(inputs), start=1):
        differences = []
        for how, given in contexts.items():
            results = artefact.tick([*given, *arrays(arguments)])
            for name, value, expected in zip(names, results, arrays(expected_results), strict=True):
                difference = relative_difference(value, expected)
                check(difference, tolerance, f"{backend} tick {number}, {rows} rows{how}: {name}")
                differences.append(difference)
        worst.append(max(differences))
    return np.array(worst)


@torch.inference_mode()
def _free_running(servable: Servable, artefact: Artefact, inputs: Sequence[Tensor]) -> tuple[Array, Array, Array]:
    """The largest difference at each tick, [T]; what eager and artefact stop by, certainty and energy, [2, N, T]."""
    program = servable.program
    context, state = encode_as_served(artefact, program, arrays(inputs)), None
    differences, theirs, own = [], [], []
    for arguments, expected_results in servable.eager_ticks(inputs):
        results, eager = artefact.tick([*context, *(state or arrays(arguments))]), arrays(expected_results)
        state = results[: len(program.state)]
        differences.append(max(map(relative_difference, results, eager)))
        theirs.append(_seen(program, eager))
        own.append(_seen(program, results))
    return np.array(differences), np.stack(theirs, axis=2), np.stack(own, axis=2)


def _seen(program: Program, results: Sequence[Array]) -> Array:
    """Certainty and energy of a tick, [2, N]; NaN for the energies of a model without an energy head."""
    named = dict(zip((spec.role for spec in program.outputs), results[len(program.state) :], strict=True))
    certainty = named["certainty"]
    return np.stack([certainty, named.get("energy", np.full_like(certainty, np.nan))])


def first(inputs: Sequence[Tensor], count: int) -> list[Tensor]:
    return [tensor[:count] for tensor in inputs]


def arrays(tensors: Sequence[Tensor]) -> list[Array]:
    return [tensor.contiguous().numpy() for tensor in tensors]


def relative_difference(found: Array, expected: Array) -> float:
    """Largest difference over max(1, largest expected value); infinite for another shape or datatype."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    largest = float(np.abs(expected).max(initial=0))
    difference = float(np.abs(found - expected).max(initial=0)) / max(1.0, largest)
    return difference if np.isfinite(difference) else float("inf")


def check(difference: float, tolerance: float, what: str) -> None:
    if not difference <= tolerance:
        raise DisagreementError(f"{what} differs from eager's by {difference:.3g}, at most {tolerance:g} is allowed")
