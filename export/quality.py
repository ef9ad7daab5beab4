"""How good the model is, measured on its task: by tick, and for every certainty threshold."""

# Shapes: N rows, T ticks.

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ctm.calibration import calibration_error
from ctm.frontier import THRESHOLDS, FrontierPoint, frontier, most_certain_accuracy
from ctm.judge import Judged, judge
from ctm.model import CTM
from ctm.tasks import Task, TaskConfig, load_task
from ctm.tasks.fetch import FetchError
from ctm.tasks.idx import IdxError
from export.agreement import ROW_COUNTS
from export.errors import ExportError

CANDIDATES = (*(round(0.5 + 0.01 * index, 2) for index in range(50)), 0.995, 0.999, 1.0)
"""Thresholds that may be shipped."""


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
    rule: str
    """How the shipped threshold was chosen: a sentence."""
    judged: Judged
    """For the plots."""


def measure_on_task(
    model: CTM,
    settings: Mapping[str, Any],
    data_dir: Path | None,
    *,
    threshold: float | None,
    max_accuracy_loss: float,
    rows: int,
    say: Callable[[str], None],
) -> tuple[Quality, Tensor, str]:
    """Choose a threshold on held-out rows, unless one is given, and measure the model on the test rows.

    Args:
        settings: of the task, as the checkpoint's config.json holds them.
        max_accuracy_loss: as a share.
        rows: how many held-out inputs to return.
        say: is told what was found.

    Returns:
        The quality, inputs to compare artefacts on, and a description of the data.

    Raises:
        ExportError: the task is not known, or its data not to be had.
    """
    try:
        task = open_task(settings, data_dir)
        _check_task(task, model)
        rule = "The threshold was given, not chosen."
        if threshold is None:
            threshold = choose_threshold(judge(model, task.held_out), max_accuracy_loss)
            rule = (
                f"It was chosen on {len(task.held_out):,} training rows held out of training: the smallest from which "
                f"on accuracy there stays within {100 * max_accuracy_loss:g} points of the most certain tick's."
            )
        say(f"certainty threshold {threshold:g}; judging {len(task.test):,} test rows of {task.name}")
        quality = measure_quality(judge(model, task.test), threshold, rule)
        inputs, _ = task.held_out.take(torch.arange(min(rows, len(task.held_out))))
    except (FetchError, IdxError, OSError) as error:
        raise ExportError(f"the task's data: {error}; --without-quality exports without it") from error
    shipped = quality.shipped
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


def describe_data(task: Task) -> str:
    return (
        f"{task.name}: {len(task.train):,} training rows, {len(task.held_out):,} held-out training rows, "
        f"{len(task.test):,} test rows"
    )


def choose_threshold(held_out: Judged, max_accuracy_loss: float) -> float:
    """The smallest threshold that costs little, and than which no larger one costs more.

    Args:
        max_accuracy_loss: most that may be lost, as a share, against answering at the most certain of all ticks.
    """
    enough = most_certain_accuracy(held_out.certainty, held_out.correct) - max_accuracy_loss
    chosen = CANDIDATES[-1]
    for point in reversed(frontier(held_out.certainty, held_out.correct, CANDIDATES)):
        if point.accuracy < enough:
            break
        chosen = point.threshold
    return chosen


def measure_quality(judged: Judged, threshold: float, rule: str) -> Quality:
    """Sum up the test rows; `threshold` is the one that is shipped, `rule` says why."""
    thresholds = sorted({*THRESHOLDS, threshold})
    points = frontier(judged.certainty, judged.correct, thresholds)
    return Quality(
        rows=len(judged.correct),
        accuracy=tuple(judged.correct.mean(axis=0, dtype=np.float64).tolist()),
        certainty=tuple(judged.certainty.mean(axis=0, dtype=np.float64).tolist()),
        calibration_error=tuple(calibration_error(judged.confidence, judged.correct).tolist()),
        accuracy_most_certain=most_certain_accuracy(judged.certainty, judged.correct),
        frontier=points,
        shipped=points[thresholds.index(threshold)],
        rule=rule,
        judged=judged,
    )
