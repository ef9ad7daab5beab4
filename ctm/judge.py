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


@torch.inference_mode()
def judge(model: CTM, rows: Rows, *, batch_size: int = 500, indices: Tensor | None = None) -> Judged:
    """Think for all ticks, in evaluation mode, on the device that the model is on.

    Args:
        indices: which of the rows, int64 [N]; None means all of them.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = []
    for some in torch.split(torch.arange(len(rows)) if indices is None else indices, batch_size):
        inputs, targets = rows.take(some)
        thoughts = model(inputs.to(device))
        correct_BT, confidence_BT = judge_predictions(
            thoughts.predictions, targets.to(device), model.config.answer_shape
        )
        parts.append(torch.stack([correct_BT, thoughts.certainties.float(), confidence_BT]).cpu())
    model.train(was_training)
    return Judged(*torch.cat(parts, dim=1).numpy())


def judge_predictions(predictions_BTC: Tensor, targets: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Correctness and confidence at every tick, each [B, T] in [0, 1], means over positions.

    Args:
        targets: labels, [B], or [B, positions] where `shape` has positions.
        shape: of one prediction; its last dimension runs over labels.
    """
    logits = torch.unflatten(predictions_BTC.detach().float(), -1, shape)
    confidence, label = logits.softmax(dim=-1).max(dim=-1)
    correct = (label == targets[:, None]).float()
    return _over_positions(correct), _over_positions(confidence)


def _over_positions(values: Tensor) -> Tensor:
    """[B, T, positions...] to [B, T]."""
    return values.flatten(2).mean(dim=2) if values.dim() > 2 else values
