"""What a model does with the rows of a task, tick by tick: right or wrong, how certain, how confident."""
# Shapes: B rows of a batch, N rows in all, T ticks, C numbers in a prediction.

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctm.model import CTM
from ctm.tasks import Rows


class Judged(NamedTuple):
    """What every row did at every tick: float32 [N, T]."""

    correct: NDArray[np.float32]
    """1 for a right prediction, 0 for a wrong one; the share of right positions where there are several."""
    certainty: NDArray[np.float32]
    confidence: NDArray[np.float32]
    """Probability of the predicted label, the mean over positions."""
    whole: NDArray[np.float32]
    """1 where the prediction is right at every position; the same as `correct` where there is but one."""
    unpadded: NDArray[np.float32]
    """As `correct`, without the positions that only fill a shorter answer up."""


class Marks(NamedTuple):
    """What predictions are worth at every tick, each [B, T] in [0, 1]."""

    correct: Tensor
    """The share of right positions."""
    confidence: Tensor
    """The mean over positions."""
    whole: Tensor
    unpadded: Tensor


@torch.inference_mode()
def judge(
    model: CTM, rows: Rows, *, batch_size: int = 500, indices: Tensor | None = None, padding: int | None = None
) -> Judged:
    """Think for all ticks, in evaluation mode, on the device that the model is on.

    Args:
        padding: the label that fills an answer up, as the task says; None where every position counts.
        indices: which of the rows, int64 [N]; None means all of them.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = []
    for some in torch.split(torch.arange(len(rows)) if indices is None else indices, batch_size):
        inputs, targets = rows.take(some)
        thoughts = model(inputs.to(device))
        marks = judge_predictions(thoughts.predictions, targets.to(device), model.config.answer_shape, padding)
        judged = (marks.correct, thoughts.certainties.float(), marks.confidence, marks.whole, marks.unpadded)
        parts.append(torch.stack(judged).cpu())
    model.train(was_training)
    return Judged(*torch.cat(parts, dim=1).numpy())


def judge_predictions(
    predictions_BTC: Tensor, targets: Tensor, shape: tuple[int, ...], padding: int | None = None
) -> Marks:
    """Compare the likeliest labels with the right ones.

    Args:
        targets: labels, [B], or [B, positions] where `shape` has positions.
        shape: of one prediction; its last dimension runs over labels.
        padding: the label that fills an answer up; None where every position counts. An answer of nothing else
            counts with all its positions.
    """
    logits = torch.unflatten(predictions_BTC.detach().float(), -1, shape)
    confidence, label = logits.softmax(dim=-1).max(dim=-1)
    # One label a row is an answer of one position.
    targets_BR = targets.reshape(len(targets), -1)
    right_BTR = label.reshape(*label.shape[:2], -1) == targets_BR[:, None]
    counted_BR = torch.ones_like(targets_BR, dtype=torch.bool) if padding is None else targets_BR != padding
    counted_BR = counted_BR | ~counted_BR.any(dim=1, keepdim=True)
    return Marks(
        correct=right_BTR.float().mean(dim=2),
        confidence=confidence.reshape(right_BTR.shape).mean(dim=2),
        whole=right_BTR.all(dim=2).float(),
        unpadded=(right_BTR & counted_BR[:, None]).sum(dim=2) / counted_BR.sum(dim=1)[:, None],
    )
