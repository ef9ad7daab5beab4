"""Losses over the ticks of a thought (paper section 3.5): learn at the best tick and at the most certain one."""

# Shapes: B rows, T ticks, C numbers in a prediction, R positions, K classes.

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ctm.certainty import most_certain


class Loss(NamedTuple):
    """What to descend, and the tick each row is judged by."""

    value: Tensor
    """Scalar."""
    tick: Tensor
    """[B] the most certain tick, from 0."""


def image_loss(predictions: Tensor, certainties: Tensor, targets: Tensor, *, use_most_certain: bool = True) -> Loss:
    """Cross-entropy of one class a row.

    Args:
        predictions: logits, [B, T, K].
        certainties: [B, T].
        targets: classes, [B].
        use_most_certain: False judges the last tick instead of the most certain.
    """
    per_tick = _cross_entropy(predictions[:, :, None], targets[:, None]).squeeze(-1)
    return _two_ticks(per_tick, certainties, use_most_certain)


def parity_loss(predictions: Tensor, certainties: Tensor, targets: Tensor, *, use_most_certain: bool = True) -> Loss:
    """Cross-entropy averaged over positions.

    Args:
        predictions: logits as the model makes them, [B, T, R * K].
        certainties: [B, T].
        targets: classes, [B, R].
        use_most_certain: False judges the last tick instead of the most certain.
    """
    per_position = _cross_entropy(_by_position(predictions, targets), targets)
    return _two_ticks(per_position.mean(-1), certainties, use_most_certain)


def maze_loss(
    predictions: Tensor, certainties: Tensor, targets: Tensor, *, lookahead: int = 5, use_most_certain: bool = True
) -> Loss:
    """Cross-entropy of the first moves of a route: as far as the model already gets, and a little further.

    Args:
        predictions: logits as the model makes them, [B, T, R * K].
        certainties: [B, T].
        targets: moves, [B, R].
        lookahead: moves learned beyond the last right one; see `maze_horizon`.
        use_most_certain: False judges the last tick instead of the most certain.
    """
    moves_BTRK = _by_position(predictions, targets)
    horizon = maze_horizon(moves_BTRK.argmax(-1), targets, lookahead)
    counted = torch.arange(targets.shape[1], device=targets.device) < horizon[:, None]
    per_position = _cross_entropy(moves_BTRK, targets) * counted[:, None]
    per_tick = per_position.sum(-1) / counted.sum(-1, keepdim=True)
    return _two_ticks(per_tick, certainties, use_most_certain)


def maze_horizon(moves_BTR: Tensor, targets_BR: Tensor, lookahead: int) -> Tensor:
    """How many moves of each row count, [B]; may exceed R.

    `lookahead` beyond the last of the moves that are right from the start on, at the tick that gets furthest.
    """
    right_BTR = (moves_BTR == targets_BR[:, None]).long()
    furthest_B = right_BTR.cumprod(-1).sum(-1).amax(-1)
    return (furthest_B - 1).clamp(min=0) + lookahead


def energy_loss(
    predictions: Tensor, energies: Tensor, targets: Tensor, *, margin: float = 10.0, scale: float = 0.1
) -> Loss:
    """Cross-entropy at all ticks, and energies drawn to 0 where the prediction is right, over `margin` where not.

    Args:
        predictions: logits, [B, T, K].
        energies: [B, T].
        targets: classes, [B].
        margin: energy that a wrong prediction should have at least.
        scale: weight of the energies' part.

    Returns:
        As `tick` the one of least energy: with an energy head, that is the sure one.
    """
    cross_entropy = _cross_entropy(predictions[:, :, None], targets[:, None]).mean()
    contrast = energy_contrast(predictions, energies, targets, margin=margin)
    return Loss(cross_entropy + scale * contrast, energies.argmin(-1))


def energy_contrast(predictions: Tensor, energies: Tensor, targets: Tensor, *, margin: float) -> Tensor:
    """The energies' part of `energy_loss`: scalar, the mean over rows and ticks.

    Where a prediction is right with probability p, the energy that costs least is (1 - p) margin: an energy that is
    learned well says how likely its prediction is wrong.
    """
    right_BT = predictions.argmax(-1) == targets[:, None]
    return torch.where(right_BT, energies, (margin - energies).relu()).square().mean()


def _by_position(predictions_BTC: Tensor, targets_BR: Tensor) -> Tensor:
    return torch.unflatten(predictions_BTC, -1, (targets_BR.shape[-1], -1))


def _cross_entropy(logits_BTRK: Tensor, targets_BR: Tensor) -> Tensor:
    """Of each position at each tick, [B, T, R]."""
    targets_BTR = targets_BR[:, None].expand(logits_BTRK.shape[:-1])
    return F.cross_entropy(logits_BTRK.flatten(0, -2), targets_BTR.flatten(), reduction="none").view(targets_BTR.shape)


def _two_ticks(per_tick_BT: Tensor, certainties_BT: Tensor, use_most_certain: bool) -> Loss:
    """The mean of the loss at the best tick and at the tick the row is judged by (paper eq. 12)."""
    best_B = per_tick_BT.argmin(-1)
    last_B = torch.full_like(best_B, per_tick_BT.shape[1] - 1)
    judged_B = most_certain(certainties_BT) if use_most_certain else last_B
    chosen_B2 = per_tick_BT.gather(1, torch.stack([best_B, judged_B], dim=1))
    return Loss(chosen_B2.mean(), judged_B)
