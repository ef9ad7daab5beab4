"""What a language model does with a text, tick by tick: bits a byte, certainty, and how often it is right."""

# Shapes: N tokens that were predicted, T ticks.

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctm.frontier import NEVER, THRESHOLDS, FrontierPoint, frontier, stopping
from ctm.language.model import LanguageCTM
from ctm.tasks import Rows


class JudgedText(NamedTuple):
    """What every thought did at every tick, float32 [N, T], and how long what it predicted is."""

    nats: NDArray[np.float32]
    certainty: NDArray[np.float32]
    correct: NDArray[np.float32]
    confidence: NDArray[np.float32]
    bytes: NDArray[np.int64]
    """[N] of the token that came; 0 where it stands for no text."""


@torch.inference_mode()
def judge_text(
    model: LanguageCTM, rows: Rows, token_bytes: NDArray[np.int64], *, batch_size: int, indices: Tensor | None = None
) -> JudgedText:
    """Think about every next token, in evaluation mode, on the device that the model is on.

    Args:
        token_bytes: of each token of the vocabulary, [V].
        batch_size: windows of text at once.
        indices: which of the rows; None means all of them.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts, lengths = [], []
    for some in torch.split(torch.arange(len(rows)) if indices is None else indices, batch_size):
        tokens, targets = rows.take(some)
        thoughts = model.judge(tokens.to(device), targets.to(device))
        values = (thoughts.losses, thoughts.certainties, thoughts.right, thoughts.confidences)
        parts.append(torch.stack([value.float().cpu() for value in values]))
        lengths.append(token_bytes[targets.flatten().numpy()])
    model.train(was_training)
    nats, certainty, correct, confidence = torch.cat(parts, dim=1).numpy()
    return JudgedText(nats, certainty, correct, confidence, np.concatenate(lengths))


def bits_per_byte(nats_N: NDArray[np.floating], bytes_N: NDArray[np.int64]) -> float:
    """What a byte of text costs on average: independent of how text is cut into tokens."""
    return float(nats_N.sum(dtype=np.float64) / math.log(2) / bytes_N.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class TextQuality:
    """A model's numbers on some text; the lists run over the ticks."""

    tokens: int
    bits_per_byte: float
    """At each thought's most certain tick."""
    mean_answer_tick: float
    bits_per_byte_by_tick: list[float]
    accuracy_by_tick: list[float]
    certainty_by_tick: list[float]
    frontier: tuple[FrontierPoint, ...]


def text_quality(judged: JudgedText, thresholds: Sequence[float] = THRESHOLDS) -> TextQuality:
    """Sum up what `judge_text` found."""
    _, answer_N = stopping(judged.certainty, NEVER)
    ticks = judged.nats.shape[1]
    return TextQuality(
        tokens=len(judged.nats),
        bits_per_byte=_bits_at(judged, answer_N),
        mean_answer_tick=float(answer_N.mean() + 1),
        bits_per_byte_by_tick=[bits_per_byte(judged.nats[:, tick], judged.bytes) for tick in range(ticks)],
        accuracy_by_tick=judged.correct.mean(axis=0, dtype=np.float64).tolist(),
        certainty_by_tick=judged.certainty.mean(axis=0, dtype=np.float64).tolist(),
        frontier=text_frontier(judged, thresholds),
    )


def text_frontier(judged: JudgedText, thresholds: Sequence[float]) -> tuple[FrontierPoint, ...]:
    """What each threshold costs in bits and saves in ticks."""
    points = frontier(judged.certainty, judged.correct, thresholds)
    return tuple(
        replace(point, bits_per_byte=_bits_at(judged, stopping(judged.certainty, point.threshold)[1]))
        for point in points
    )


def _bits_at(judged: JudgedText, tick_N: NDArray[np.int64]) -> float:
    return bits_per_byte(judged.nats[np.arange(len(tick_N)), tick_N], judged.bytes)
