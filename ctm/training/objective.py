"""What is descended: the loss that a task names, or the energy loss where the model has an energy head."""

from torch import Tensor

from ctm.certainty import most_certain
from ctm.losses import Loss, energy_loss, image_loss, parity_loss
from ctm.model import Thoughts
from ctm.tasks.task import LossName
from ctm.training.config import LossConfig


def objective(thoughts: Thoughts, targets: Tensor, name: LossName, config: LossConfig) -> Loss:
    """Scalar loss of a batch, and the tick that each row is judged by.

    A model with an energy head descends `energy_loss` alone, which is the loss such models were published with: it
    has a cross-entropy of its own, at all ticks, and the paper's loss beside it would count the cross-entropy twice.
    An energy is read at every tick, so every tick should learn to predict. Rows are then judged by their most certain
    tick, as evaluations judge them; without an energy head `most_certain` may choose the last tick instead.
    """
    if thoughts.energies is not None:
        assert name == "image", "an energy head needs one label a row"
        scales = {"margin": config.energy_margin, "scale": config.energy_scale}
        energy = energy_loss(thoughts.predictions, thoughts.energies, targets, **scales)
        return Loss(energy.value, most_certain(thoughts.certainties))
    match name:
        case "image":
            judge = image_loss
        case "parity":
            judge = parity_loss
    return judge(thoughts.predictions, thoughts.certainties, targets, use_most_certain=config.most_certain)
