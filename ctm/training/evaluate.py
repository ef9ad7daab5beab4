"""How well a model thinks, tick by tick: accuracy, certainty, calibration, and what early stopping would give."""
# Shapes: B rows of a batch, N rows in all, T ticks, C outputs, K labels.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ctm.calibration import calibration_error
from ctm.frontier import FrontierPoint, frontier, stopping
from ctm.model import CTM
from ctm.tasks import Rows, Task

NEVER = 2.0
"""A threshold beyond all certainty: every tick is run."""


class Judged(NamedTuple):
    """What every row did at every tick: float32 [N, T], on the CPU."""

    correct: Tensor
    """1 for a right prediction, 0 for a wrong one; the share of right positions where there are several."""
    certainty: Tensor
    confidence: Tensor
    """Probability of the predicted label, the mean over positions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A model's numbers on some rows; the lists run over the ticks."""

    rows: int
    accuracy: float
    """Of each row's most certain tick."""
    mean_answer_tick: float
    """Of the most certain tick, counted from 1."""
    accuracy_by_tick: list[float]
    certainty_by_tick: list[float]
    calibration_error_by_tick: list[float]
    frontier: tuple[FrontierPoint, ...]


def evaluate(model: CTM, task: Task, rows: Rows, batch_size: int, accelerator: Accelerator | None = None) -> Evaluation:
    """Think about all rows for all ticks, each process about its share, and sum it up."""
    return summarise(judge(model, rows, task.prediction_shape, batch_size, accelerator))


def summarise(judged: Judged) -> Evaluation:
    correct_NT, certainty_NT, confidence_NT = (values.numpy().astype(np.float64) for values in judged)
    _, answer_N = stopping(certainty_NT, NEVER)
    return Evaluation(
        rows=len(answer_N),
        accuracy=float(correct_NT[np.arange(len(answer_N)), answer_N].mean()),
        mean_answer_tick=float(answer_N.mean() + 1),
        accuracy_by_tick=correct_NT.mean(axis=0).tolist(),
        certainty_by_tick=certainty_NT.mean(axis=0).tolist(),
        calibration_error_by_tick=calibration_error(confidence_NT, correct_NT).tolist(),
        # float32, as it is compared when serving.
        frontier=frontier(judged.certainty.numpy(), judged.correct.numpy()),
    )


@torch.inference_mode()
def judge(
    model: CTM, rows: Rows, prediction_shape: Sequence[int], batch_size: int, accelerator: Accelerator | None = None
) -> Judged:
    """Run all ticks on all rows; with several processes each runs its share, and all of them get everything."""
    processes, process = (accelerator.num_processes, accelerator.process_index) if accelerator else (1, 0)
    device = next(model.parameters()).device
    share = -(-len(rows) // processes)
    # Past the end the last row is judged again, so that all shares are equally long; it is cut off below.
    mine = torch.arange(process * share, (process + 1) * share).clamp(max=len(rows) - 1)
    parts = []
    was_training = model.training
    model.eval()
    for indices in torch.split(mine, batch_size):
        inputs, targets = rows.take(indices)
        thoughts = model(inputs.to(device))
        correct_BT, confidence_BT = judge_predictions(thoughts.predictions, targets.to(device), prediction_shape)
        parts.append(torch.stack([correct_BT, thoughts.certainties.float(), confidence_BT]))
    model.train(was_training)
    judged_3NT = torch.cat(parts, dim=1)
    if accelerator is not None and processes > 1:
        gathered: Tensor = accelerator.gather(judged_3NT.transpose(0, 1).contiguous())
        judged_3NT = gathered.transpose(0, 1)
    return Judged(*judged_3NT[:, : len(rows)].cpu())


def judge_predictions(predictions_BTC: Tensor, targets: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Correctness and confidence at every tick, each [B, T] in [0, 1], means over positions.

    Args:
        targets: labels, [B], or [B, positions] where `shape` has positions.
        shape: of one prediction; its last dimension runs over labels.
    """
    logits = torch.unflatten(predictions_BTC.detach().float(), -1, tuple(shape))
    confidence, label = logits.softmax(dim=-1).max(dim=-1)
    correct = (label == targets[:, None]).float()
    return _over_positions(correct), _over_positions(confidence)


def _over_positions(values: Tensor) -> Tensor:
    """[B, T, positions...] to [B, T]."""
    return values.flatten(2).mean(dim=2) if values.dim() > 2 else values
