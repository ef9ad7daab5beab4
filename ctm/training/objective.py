"""What is descended: the loss that a task names, with the energies' part where the model has an energy head."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ctm.certainty import most_certain
from ctm.losses import Loss, energy_contrast, energy_loss, image_loss, maze_loss, parity_loss
from ctm.model import Thoughts
from ctm.tasks.task import LossName
from ctm.training.config import LossConfig


def objective(thoughts: Thoughts, targets: Tensor, name: LossName, config: LossConfig) -> Loss:
    """Scalar loss of a batch, and the tick that each row is judged by.

    A model with an energy head learns its energies at every tick, by `energy_contrast`, and its predictions by what
    `energy_beside` names. With the cross-entropy of every tick that is `energy_loss`, which such models were published
    with; rows are then judged by their most certain tick, as evaluations judge them.
    """
    if thoughts.energies is None:
        return _predicted(thoughts, targets, name, config)
    assert name == "image", "an energy head needs one label a row"
    given = thoughts.predictions, thoughts.energies, targets
    if config.energy_beside == "paper":
        paper = _predicted(thoughts, targets, name, config)
        contrast = energy_contrast(*given, margin=config.energy_margin)
        return Loss(paper.value + config.energy_scale * contrast, paper.tick)
    every = energy_loss(*given, margin=config.energy_margin, scale=config.energy_scale).value
    if config.energy_beside == "both":
        paper = _predicted(thoughts, targets, name, config)
        return Loss(every + paper.value, paper.tick)
    return Loss(every, most_certain(thoughts.certainties))


def _predicted(thoughts: Thoughts, targets: Tensor, name: LossName, config: LossConfig) -> Loss:
    judge: Callable[..., Loss]
    match name:
        case "image":
            judge = image_loss
        case "parity":
            judge = parity_loss
        case "maze":
            judge = partial(maze_loss, lookahead=config.lookahead)
    return judge(thoughts.predictions, thoughts.certainties, targets, use_most_certain=config.most_certain)
