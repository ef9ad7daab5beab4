"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn: a task that trains in seconds."""

import torch

from ctm.tasks.augment import augmentation
from ctm.tasks.config import TaskConfig
from ctm.tasks.task import Task, TensorRows

BRIGHTEST = 16


def digits_task(config: TaskConfig) -> Task:
    """Of every five rows in the set's own order, three are learned from, one is held out and one is for the test."""
    # Here, because importing scikit-learn takes seconds that no other task should wait for.
    from sklearn.datasets import load_digits

    bundled = load_digits()
    images = torch.from_numpy(bundled.images).to(torch.float32)[:, None]
    targets = torch.from_numpy(bundled.target)
    part = torch.arange(len(targets)) % 5

    def rows(chosen: torch.Tensor) -> TensorRows:
        return TensorRows(images[chosen], targets[chosen], scale=1 / BRIGHTEST)

    return Task(
        name="digits",
        loss="image",
        input_name="image",
        input_shape=(1, 8, 8),
        prediction_shape=(10,),
        labels=tuple("0123456789"),
        train=rows(part < 3),
        held_out=rows(part == 3),
        test=rows(part == 4),
        augment=augmentation(config.augment),
    )
