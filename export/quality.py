"""How good the model is, measured on its task: by tick, and for every certainty threshold."""

# Shapes: N rows, T ticks.

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ctm.calibration import calibration_error
from ctm.energy import StopRule, judge_with_energy, stop
from ctm.frontier import (
    THRESHOLDS,
    Floats,
    FrontierPoint,
    Integers,
    frontier,
    most_certain_accuracy,
    stopping,
)
from ctm.judge import Judged
from ctm.model import CTM
from ctm.tasks import Task, TaskConfig, load_task
from ctm.tasks.fetch import FetchError
from ctm.tasks.idx import IdxError
from export.agreement import ROW_COUNTS
from export.energy import EnergyQuality, choose_rule, measure_energy
from export.errors import ExportError

CANDIDATES = (*(round(0.5 + 0.01 * index, 2) for index in range(50)), 0.995, 0.999, 1.0)
"""Thresholds that may be shipped."""

_Thoughts = tuple[Judged, Floats | None]
"""Of some rows: what they were judged to be, and their energies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Measured on the test split; the threshold was chosen on held-out training rows."""

    rows: int
    accuracy: tuple[float, ...]
    """By tick, as are the next two."""
    certainty: tuple[float, ...]
    calibration_error: tuple[float, ...]
    accuracy_most_certain: float
    """Of each row's most certain tick."""
    frontier: tuple[FrontierPoint, ...]
    """What a threshold buys; the shipped one is among them."""
    shipped: FrontierPoint
    """At the shipped threshold, energy stopping nothing; at the one that was chosen, where energy alone ships."""
    rule: str
    """How the shipped threshold was chosen: a sentence."""
    judged: Judged
    """For the plots."""
    whole: tuple[float, ...] = ()
    """By tick, where an answer has several positions: the share of rows that are right at every one."""
    whole_most_certain: float = 0.0
    unpadded: tuple[float, ...] = ()
    """By tick: accuracy at the positions that do not only fill a shorter answer up, where some do."""
    bits_per_byte: tuple[float, ...] = ()
    """By tick, of models of text."""
    bits_per_byte_most_certain: float = 0.0
    energy: EnergyQuality | None = None
    """Of a model with an energy head."""

    @property
    def threshold(self) -> float | None:
        """Of certainty, that ships; None where energy alone does."""
        if self.energy is not None and not isfinite(self.energy.shipped.rule.certainty):
            return None
        return self.shipped.threshold

    def stopped(self) -> tuple[Integers, Integers]:
        """When each row stops under the rules that ship, and which tick answers, as `stopping` says it."""
        if self.energy is None:
            return stopping(self.judged.certainty, self.shipped.threshold)
        stopped = stop(self.judged.certainty, self.energy.energies, self.energy.shipped.rule)
        return stopped.used, stopped.answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the exported model shall stop at; None where it is to be found."""

    threshold: float | None = None
    """Certainty."""
    energy_threshold: float | None = None
    energy_delta: float | None = None
    """Never chosen: None ships none."""
    max_accuracy_loss: float = 0.0
    """As a share."""


def measure_on_task(
    model: CTM,
    settings: Mapping[str, Any],
    data_dir: Path | None,
    *,
    wishes: Wishes,
    rows: int,
    say: Callable[[str], None],
    energy_margin: float | None = None,
) -> tuple[Quality, Tensor, str]:
    """Choose thresholds on held-out rows, unless they are given, and measure the model on the test rows.

    Args:
        settings: of the task, as the checkpoint's config.json holds them.
        rows: how many held-out inputs to return.
        energy_margin: that the model was trained with, where it is known.
        say: is told what was found.

    Returns:
        The quality, inputs to compare artefacts on, and a description of the data.

    Raises:
        ExportError: the task is not known, or its data not to be had.
    """
    try:
        task = open_task(settings, data_dir)
        _check_task(task, model)
        held_out = cache(lambda: judge_with_energy(model, task.held_out, padding=task.padding))
        positions = len(task.prediction_shape) > 1
        threshold, rule = _certainty_rule(wishes, held_out, positions)
        say(f"certainty threshold {threshold:g}; judging {len(task.test):,} test rows of {task.name}")
        judged, energy_NT = judge_with_energy(model, task.test, padding=task.padding)
        quality = measure_quality(judged, threshold, rule, positions=positions)
        if task.padding is not None:
            quality = replace(quality, unpadded=_by_tick(judged.unpadded))
        if energy_NT is not None:
            stop_rule, energy_rule = _energy_rule(wishes, held_out, threshold)
            energy = measure_energy(judged, energy_NT, stop_rule, energy_margin, energy_rule)
            quality = replace(quality, energy=energy)
        inputs, _ = task.held_out.take(torch.arange(min(rows, len(task.held_out))))
    except (FetchError, IdxError, OSError) as error:
        raise ExportError(f"the task's data: {error}; --without-quality exports without it") from error
    shipped = quality.shipped if quality.energy is None else quality.energy.shipped
    say(f"test accuracy {shipped.accuracy:.2%} after {shipped.mean_ticks:.2f} ticks on average")
    return quality, inputs, describe_data(task)


def open_task(settings: Mapping[str, Any], data_dir: Path | None) -> Task:
    """The task that a checkpoint's config.json names; beside its settings it may hold other keys.

    Raises:
        ExportError: the settings are not those of a task.
        OSError, FetchError, IdxError: its data is not to be had, or not what it should be.
    """
    known = TaskConfig.__dataclass_fields__
    try:
        config = TypeAdapter(TaskConfig).validate_python({key: settings[key] for key in settings if key in known})
    except ValidationError as error:
        raise ExportError(f"the checkpoint's task is none that is known here: {error.errors()[0]['msg']}") from error
    try:
        return load_task(config, data_dir)
    except IdxError:
        raise  # of the data, though it is a ValueError as the settings' are
    except ValueError as error:
        raise ExportError(f"the checkpoint's task: {error}") from error


def _check_task(task: Task, model: CTM) -> None:
    theirs, ours = (task.input_shape, task.prediction_shape), (model.config.input_shape, model.config.answer_shape)
    if theirs != ours:
        raise ExportError(
            f"the checkpoint's task, {task.name}, has inputs and predictions of shapes {theirs[0]} and {theirs[1]}, "
            f"its model of {ours[0]} and {ours[1]}"
        )
    if len(task.held_out) < max(ROW_COUNTS):
        raise ExportError(
            f"the checkpoint's task holds out {len(task.held_out)} training rows, comparing artefacts with the model "
            f"needs at least {max(ROW_COUNTS)}; --without-quality compares on random ones"
        )


def _certainty_rule(wishes: Wishes, held_out: Callable[[], _Thoughts], positions: bool) -> tuple[float, str]:
    """The threshold that ships, and how it was found."""
    if wishes.threshold is not None:
        return wishes.threshold, "The threshold was given, not chosen."
    judged, _ = held_out()
    what = "accuracy and the share of whole answers there stay" if positions else "accuracy there stays"
    return choose_threshold(judged, wishes.max_accuracy_loss), (
        f"It was chosen on {len(judged.correct):,} training rows held out of training: the smallest from which on "
        f"{what} within {100 * wishes.max_accuracy_loss:g} points of the most certain tick's."
    )


def _energy_rule(wishes: Wishes, held_out: Callable[[], _Thoughts], certainty: float) -> tuple[StopRule, str]:
    """The rules that ship, and how they were found; `certainty` ships unless energy alone does better."""
    delta = wishes.energy_delta or 0.0
    if wishes.energy_threshold is not None:
        rule = StopRule(certainty=certainty, energy=wishes.energy_threshold, delta=delta)
        return rule, "The energy threshold was given, not chosen."
    judged, energy_NT = held_out()
    assert energy_NT is not None, "a model that has energies on test rows has them on held-out rows"
    may_omit = wishes.threshold is None
    rule, sentence = choose_rule(judged, energy_NT, wishes.max_accuracy_loss, certainty, may_omit=may_omit)
    return replace(rule, delta=delta), sentence


def describe_data(task: Task) -> str:
    return (
        f"{task.name}: {len(task.train):,} training rows, {len(task.held_out):,} held-out training rows, "
        f"{len(task.test):,} test rows"
    )


def choose_threshold(held_out: Judged, max_accuracy_loss: float) -> float:
    """The smallest threshold that costs little, and than which no larger one costs more.

    Args:
        max_accuracy_loss: most that may be lost, as a share, against answering at the most certain of all ticks: of
            accuracy, and of the share of answers that are right at every position.
    """
    certainty_NT, correct_NT, whole_NT = held_out.certainty, held_out.correct, held_out.whole
    enough = most_certain_accuracy(certainty_NT, correct_NT) - max_accuracy_loss
    enough_whole = most_certain_accuracy(certainty_NT, whole_NT) - max_accuracy_loss
    chosen = CANDIDATES[-1]
    for point in reversed(frontier(certainty_NT, correct_NT, CANDIDATES, whole_NT=whole_NT)):
        assert point.whole is not None, "a frontier counts the whole answers that it is given"
        if point.accuracy < enough or point.whole < enough_whole:
            break
        chosen = point.threshold
    return chosen


def measure_quality(judged: Judged, threshold: float, rule: str, *, positions: bool = False) -> Quality:
    """Sum up the test rows; `threshold` is the one that is shipped, `rule` says why.

    Args:
        positions: whether an answer has several.
    """
    thresholds = sorted({*THRESHOLDS, threshold})
    points = frontier(judged.certainty, judged.correct, thresholds, whole_NT=judged.whole if positions else None)
    return Quality(
        rows=len(judged.correct),
        accuracy=_by_tick(judged.correct),
        certainty=_by_tick(judged.certainty),
        calibration_error=tuple(calibration_error(judged.confidence, judged.correct).tolist()),
        accuracy_most_certain=most_certain_accuracy(judged.certainty, judged.correct),
        frontier=points,
        shipped=points[thresholds.index(threshold)],
        rule=rule,
        judged=judged,
        whole=_by_tick(judged.whole) if positions else (),
        whole_most_certain=most_certain_accuracy(judged.certainty, judged.whole) if positions else 0.0,
    )


def _by_tick(values_NT: Floats) -> tuple[float, ...]:
    return tuple(values_NT.mean(axis=0, dtype=np.float64).tolist())
