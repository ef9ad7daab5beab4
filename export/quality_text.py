"""How good a language model is, measured on its corpus: bits per byte by tick, and for every certainty threshold."""

# Shapes: N tokens that were predicted, T ticks, W tokens of the window.

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ctm.calibration import calibration_error
from ctm.families import TOKENIZER
from ctm.frontier import NEVER, THRESHOLDS, most_certain_accuracy
from ctm.judge import Judged
from ctm.language.judge import JudgedText, judge_text, text_frontier, text_quality
from ctm.language.model import LanguageCTM
from ctm.tasks import Task
from export.errors import ExportError
from export.quality import Quality, open_task

CANDIDATES = (*(round(0.05 + 0.01 * index, 2) for index in range(95)), 0.995, 0.999, 1.0)
"""Thresholds that may be shipped; at the last one nothing is lost."""
_LOW_THRESHOLDS = (0.1, 0.2, 0.3, 0.4)
"""Shown besides the usual ones: what comes next in a text is seldom certain."""
_BATCH = 8
_SEED = 0


def measure_on_text(
    model: LanguageCTM,
    settings: Mapping[str, Any],
    files: Mapping[str, str],
    data_dir: Path | None,
    *,
    threshold: float | None,
    max_bits_loss: float,
    rows: int,
    say: Callable[[str], None],
) -> tuple[Quality, tuple[Tensor, ...], str]:
    """Choose a threshold on held-out text, unless one is given, and measure the model on test text.

    Args:
        settings: of the task, as the checkpoint's config.json holds them.
        files: of the checkpoint: its tokenizer.
        max_bits_loss: most that a byte may cost more than at the most certain of all ticks, as a share.
        rows: how many held-out texts to return.
        say: is told what was found.

    Returns:
        The quality, texts of all lengths to compare artefacts on, and a description of the data.

    Raises:
        ExportError: the corpus is not to be had, or another than the model was trained on.
    """
    try:
        task = open_task(settings, data_dir)
    except OSError as error:
        raise ExportError(f"the task's data: {error}; --without-quality exports without it") from error
    if task.files.get(TOKENIZER) != files.get(TOKENIZER):
        raise ExportError(f"{data_dir} is another corpus than the model's: its {TOKENIZER} differs from the model's")
    rule = "The threshold was given, not chosen."
    if threshold is None:
        held_out = _judge(model, task, task.held_out)
        threshold = choose_text_threshold(held_out, max_bits_loss)
        rule = (
            f"It was chosen on {len(held_out.nats):,} tokens held out of training: the smallest from which on a byte "
            f"costs at most {100 * max_bits_loss:g} % more there than at the most certain tick."
        )
    say(f"certainty threshold {threshold:g}; judging {len(task.test):,} test windows of {task.name}")
    quality = measure_text_quality(_judge(model, task, task.test), threshold, rule)
    shipped = quality.shipped
    say(f"test text {shipped.bits_per_byte:.4f} bits a byte after {shipped.mean_ticks:.2f} ticks on average")
    return quality, _texts(model, task, rows), _describe(task)


def choose_text_threshold(held_out: JudgedText, max_bits_loss: float) -> float:
    """The smallest threshold that costs little, and than which no larger one costs more."""
    (never,) = text_frontier(held_out, [NEVER])
    assert never.bits_per_byte is not None, "a frontier of text counts bits"
    chosen = CANDIDATES[-1]
    for point in reversed(text_frontier(held_out, CANDIDATES)):
        assert point.bits_per_byte is not None, "a frontier of text counts bits"
        if point.bits_per_byte > never.bits_per_byte * (1 + max_bits_loss):
            break
        chosen = point.threshold
    return chosen


def measure_text_quality(judged: JudgedText, threshold: float, rule: str) -> Quality:
    """Sum up test text; `threshold` is the one that is shipped, `rule` says why."""
    thresholds = sorted({*_LOW_THRESHOLDS, *THRESHOLDS, threshold})
    found = text_quality(judged, thresholds)
    return Quality(
        rows=found.tokens,
        accuracy=tuple(found.accuracy_by_tick),
        certainty=tuple(found.certainty_by_tick),
        calibration_error=tuple(calibration_error(judged.confidence, judged.correct).tolist()),
        accuracy_most_certain=most_certain_accuracy(judged.certainty, judged.correct),
        frontier=found.frontier,
        shipped=found.frontier[thresholds.index(threshold)],
        rule=rule,
        judged=Judged(judged.correct, judged.certainty, judged.confidence, judged.correct, judged.correct),
        bits_per_byte=tuple(found.bits_per_byte_by_tick),
        bits_per_byte_most_certain=found.bits_per_byte,
    )


def _judge(model: LanguageCTM, task: Task, rows: Any) -> JudgedText:
    assert task.token_bytes is not None, "a corpus knows how many bytes a token stands for"
    return judge_text(model, rows, task.token_bytes, batch_size=_BATCH)


def _texts(model: LanguageCTM, task: Task, rows: int) -> tuple[Tensor, Tensor]:
    """Held-out texts cut to drawn lengths: tokens, [rows, W], and how many of them count."""
    generator = np.random.default_rng(_SEED)
    windows, _ = task.held_out.take(torch.from_numpy(generator.integers(0, len(task.held_out), rows)))
    length = torch.from_numpy(generator.integers(1, windows.shape[1], rows, endpoint=True))
    tokens = windows.masked_fill(torch.arange(windows.shape[1]) >= length[:, None], 0)
    return F.pad(tokens, (0, model.language.context - tokens.shape[1])), length


def _describe(task: Task) -> str:
    return (
        f"{task.name}: {len(task.train):,} training windows of {task.input_shape[0]} tokens, {len(task.held_out):,} "
        f"held-out windows, {len(task.test):,} test windows"
    )
