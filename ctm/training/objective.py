"""What is descended: the loss that a task names, with the energy's part where the model has an energy head."""

from torch import Tensor

from ctm.losses import Loss, energy_loss, image_loss, parity_loss
from ctm.model import Thoughts
from ctm.tasks.task import LossName
from ctm.training.config import LossConfig


def objective(thoughts: Thoughts, targets: Tensor, name: LossName, config: LossConfig) -> Loss:
    """Scalar loss of a batch, and each row's most certain tick (its last, with `most_certain` off)."""
    match name:
        case "image":
            judge = image_loss
        case "parity":
            judge = parity_loss
    loss = judge(thoughts.predictions, thoughts.certainties, targets, use_most_certain=config.most_certain)
    if thoughts.energies is None:
        return loss
    energy = energy_loss(
        thoughts.predictions, thoughts.energies, targets, margin=config.energy_margin, scale=config.energy_scale
    )
    return Loss(loss.value + energy.value, loss.tick)
