"""What stopping by energy gives and costs, alone or beside certainty, on thoughts that ran for all their ticks."""
# Shapes: N rows, T ticks.

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ctm.frontier import Floats, Integers
from ctm.judge import Judged, judge
from ctm.model import CTM, Thoughts
from ctm.tasks import Rows

Booleans = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class StopRule:
    """When a thought stops, as a server's stop policy says it; by default, when its ticks are spent."""

    certainty: float = inf
    """It stops at the first tick that is at least this certain."""
    energy: float = -inf
    """It stops at the first tick whose energy is this or lower."""
    delta: float = 0.0
    """It stops when its energy has changed by less than this since the tick before."""
    min_ticks: int = 1
    """It does not stop before."""


class Stopped(NamedTuple):
    """What became of every row; [N] each."""

    used: Integers
    """Ticks used, in 1..T."""
    answer: Integers
    """The index of the answering tick, in 0..T-1."""
    by_certainty: Booleans
    by_energy: Booleans
    """Where neither did, all ticks were spent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyPoint:
    """How a set of rows fares under a rule."""

    rule: StopRule
    accuracy: float
    mean_ticks: float
    ticks_deviation: float
    """Standard deviation of the ticks used."""
    share_energy: float
    """Share of the rows that energy stopped."""
    share_certain: float
    """Share of the rows that certainty stopped."""


def judge_with_energy(model: CTM, rows: Rows, *, padding: int | None = None) -> tuple[Judged, Floats | None]:
    """What `judge` says, and the energies of the same thoughts, float32 [N, T]; None without an energy head."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, thoughts: Thoughts) -> None:
        if thoughts.energies is not None:
            found.append(thoughts.energies.float().cpu())

    # Overheard, so that nobody thinks twice.
    overhearing = model.register_forward_hook(keep)
    try:
        judged = judge(model, rows, padding=padding)
    finally:
        overhearing.remove()
    return judged, torch.cat(found).numpy() if found else None


def stop(certainty_NT: Floats, energy_NT: Floats, rule: StopRule) -> Stopped:
    """When each row stops, why, and which tick answers: what the server's slots do, for thoughts that were recorded.

    After `ENERGY` the stopping tick answers, otherwise the most certain one so far, the earliest of equals. A tick that
    is certain and low in energy stops as certain.
    """
    clamped_NT = np.clip(certainty_NT, 0.0, 1.0)
    # In float32 like the server, to whom a threshold comes as one.
    energy_NT = energy_NT.astype(np.float32)
    change_NT = np.abs(np.diff(energy_NT, axis=1, prepend=np.float32(np.nan)))
    settled_NT = (energy_NT <= np.float32(rule.energy)) | (change_NT < np.float32(rule.delta))
    tick_T = np.arange(clamped_NT.shape[1])
    certain_at_N = _first(clamped_NT >= rule.certainty, rule.min_ticks)
    energy_at_N = _first(settled_NT, rule.min_ticks)

    last = len(tick_T) - 1
    stop_N = np.minimum(np.minimum(certain_at_N, energy_at_N), last)
    by_certainty_N = (certain_at_N <= energy_at_N) & (certain_at_N <= last)
    by_energy_N = (energy_at_N < certain_at_N) & (energy_at_N <= last)
    surest_N = np.where(tick_T <= stop_N[:, None], clamped_NT, -1.0).argmax(axis=1)
    return Stopped(stop_N + 1, np.where(by_energy_N, stop_N, surest_N), by_certainty_N, by_energy_N)


def energy_point(certainty_NT: Floats, energy_NT: Floats, correct_NT: Floats, rule: StopRule) -> EnergyPoint:
    """How the rows fare under one rule.

    Args:
        correct_NT: 1 where the prediction at a tick is right, 0 where it is wrong.
    """
    stopped = stop(certainty_NT, energy_NT, rule)
    return EnergyPoint(
        rule=rule,
        accuracy=float(correct_NT[np.arange(len(correct_NT)), stopped.answer].mean(dtype=np.float64)),
        mean_ticks=float(stopped.used.mean()),
        ticks_deviation=float(stopped.used.std()),
        share_energy=float(stopped.by_energy.mean()),
        share_certain=float(stopped.by_certainty.mean()),
    )


def energy_candidates(energy_NT: Floats, count: int = 60) -> tuple[float, ...]:
    """Thresholds worth trying, rising: energies that these thoughts had, at even shares of their ticks."""
    return _quantiles(energy_NT, count)


def delta_candidates(energy_NT: Floats, count: int = 60) -> tuple[float, ...]:
    """Changes worth trying, rising: those that these thoughts had between two ticks, at even shares."""
    return tuple(delta for delta in _quantiles(np.abs(np.diff(energy_NT, axis=1)), count) if delta > 0)


def _first(which_NT: Booleans, min_ticks: int) -> Integers:
    """The first tick from `min_ticks` on, counted from 0; one beyond any other where there is none."""
    ticks = which_NT.shape[1]
    late_NT = which_NT & (np.arange(1, ticks + 1) >= min_ticks)
    first_N: Integers = np.where(late_NT.any(axis=1), late_NT.argmax(axis=1), ticks)
    return first_N


def _quantiles(values: Floats, count: int) -> tuple[float, ...]:
    """Rising, to three digits, as people write them."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return ()
    shares = np.linspace(0.0, 1.0, count + 1)[1:]
    found: Sequence[float] = np.quantile(finite.astype(np.float64), shares, method="inverted_cdf").tolist()
    return tuple(sorted({float(f"{value:.3g}") for value in found}))
