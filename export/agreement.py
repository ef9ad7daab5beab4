"""Does an artefact compute what the model does? Tick by tick from the model's own states, and left to itself.

The model here is `CTM` as it was trained, not the program made from it: what composing its layers changes counts too.
"""

# Shapes: N rows, T ticks.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctm.frontier import stopping
from ctm.model import CTM, Context
from ctm.program import Program, pack_context, pack_state
from export.artefact import Array, Artefact
from export.errors import DisagreementError

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


class _Tick(NamedTuple):
    """One of eager's ticks: what goes into a `tick` graph and what should come out."""

    arguments: list[Array]
    results: list[Array]


def measure_agreement(
    model: CTM,
    program: Program,
    artefact: Artefact,
    inputs: Tensor,
    threshold: float | None,
    *,
    row_counts: Sequence[int] = ROW_COUNTS,
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Compare an artefact with eager.

    Args:
        inputs: [N, *input_shape] at least as many rows as the largest of `row_counts`; all of them run freely.
        threshold: the certainty at which rows stop. None, where none is shipped: the median certainty of eager's
            ticks stands in, and the share of equal stop ticks is recorded but decides nothing.

    Raises:
        DisagreementError: a difference is beyond the tolerance, or too many rows stop at another tick.
    """
    assert len(inputs) >= max(row_counts), f"{len(inputs)} rows cannot be taken {max(row_counts)} at a time"
    one_tick = np.zeros(model.config.ticks)
    for count in row_counts:
        one_tick = np.maximum(one_tick, _one_tick(model, program, artefact, inputs[:count], tolerance))

    parts = [_free_running(model, program, artefact, chunk) for chunk in torch.split(inputs, _CHUNK)]
    difference_T = np.max([difference for difference, _, _ in parts], axis=0)
    eager_NT = np.concatenate([certainty for _, certainty, _ in parts])
    artefact_NT = np.concatenate([certainty for _, _, certainty in parts])
    stop_at = float(np.median(eager_NT)) if threshold is None else threshold
    equal = float((stopping(eager_NT, stop_at)[0] == stopping(artefact_NT, stop_at)[0]).mean())
    if threshold is not None and equal < EQUAL_STOP_TICKS:
        raise DisagreementError(
            f"{artefact.backend}: of {len(inputs)} rows {equal:.2%} stop on the same tick as eager's at certainty "
            f"{threshold:g}, at least {EQUAL_STOP_TICKS:.1%} must"
        )
    return Agreement(
        one_tick=tuple(one_tick.tolist()),
        free_running=tuple(difference_T.tolist()),
        equal_stop_ticks=equal,
        row_counts=tuple(row_counts),
        tolerance=tolerance,
        rows=len(inputs),
    )


def _one_tick(model: CTM, program: Program, artefact: Artefact, inputs: Tensor, tolerance: float) -> Array:
    """The largest difference at each tick, [T]."""
    rows, backend = len(inputs), artefact.backend
    context = _arrays(pack_context(_encode(model, inputs)))
    found = artefact.encode([inputs.numpy()])
    for spec, value, expected in zip(program.context, found, context, strict=True):
        _check(_difference(value, expected), tolerance, f"{backend} encode, {rows} rows: {spec.name}")

    names = [f"next_{spec.name}" for spec in program.state] + [spec.name for spec in program.outputs]
    worst = []
    for number, eager in enumerate(_eager_ticks(model, program, inputs), start=1):
        results = artefact.tick([*context, *eager.arguments])
        differences = [_difference(value, expected) for value, expected in zip(results, eager.results, strict=True)]
        for name, difference in zip(names, differences, strict=True):
            _check(difference, tolerance, f"{backend} tick {number}, {rows} rows: {name}")
        worst.append(max(differences))
    return np.array(worst)


def _free_running(model: CTM, program: Program, artefact: Artefact, inputs: Tensor) -> tuple[Array, Array, Array]:
    """The largest difference at each tick, [T], and the certainties of eager and artefact, [N, T] each."""
    place = len(program.state) + [spec.role for spec in program.outputs].index("certainty")
    context, state = artefact.encode([inputs.numpy()]), None
    differences, theirs, own = [], [], []
    for eager in _eager_ticks(model, program, inputs):
        results = artefact.tick([*context, *(eager.arguments if state is None else state)])
        state = results[: len(program.state)]
        differences.append(max(map(_difference, results, eager.results)))
        theirs.append(eager.results[place])
        own.append(results[place])
    return np.array(differences), np.stack(theirs, axis=1), np.stack(own, axis=1)


@torch.inference_mode()
def _encode(model: CTM, inputs: Tensor) -> Context:
    return model.encode(inputs)


@torch.inference_mode()
def _eager_ticks(model: CTM, program: Program, inputs: Tensor) -> Iterator[_Tick]:
    """Every tick that the model itself makes of these rows, as the program's tensors."""
    context, state = model.encode(inputs), model.start(len(inputs))
    done = torch.zeros(len(inputs), dtype=torch.int64)
    for root_beta_action, root_beta_out in zip(*model.root_beta_table(model.config.ticks), strict=True):
        arguments = _arrays(pack_state(state, done))
        state, output = model.tick(context, state, root_beta_action, root_beta_out)
        done = done + 1
        outputs = {
            "prediction": torch.unflatten(output.prediction, -1, model.config.answer_shape),
            "certainty": output.certainty,
            "energy": output.energy,
            "attention": output.attention,
        }
        wanted = [outputs[spec.name] for spec in program.outputs]
        yield _Tick(arguments, _arrays((*pack_state(state, done), *wanted)))


def _arrays(tensors: Sequence[Tensor | None]) -> list[Array]:
    return [tensor.contiguous().numpy() for tensor in tensors if tensor is not None]


def _difference(found: Array, expected: Array) -> float:
    """Largest difference over max(1, largest expected value); infinite for another shape or datatype."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    largest = float(np.abs(expected).max(initial=0))
    difference = float(np.abs(found - expected).max(initial=0)) / max(1.0, largest)
    return difference if np.isfinite(difference) else float("inf")


def _check(difference: float, tolerance: float, what: str) -> None:
    if not difference <= tolerance:
        raise DisagreementError(f"{what} differs from eager's by {difference:.3g}, at most {tolerance:g} is allowed")
