"""What a CTM can be trained on: each task in a file of its own, all of them behind `load_task`."""

from pathlib import Path

from ctm.tasks.cifar10 import cifar10_task
from ctm.tasks.config import TaskConfig
from ctm.tasks.digits import digits_task
from ctm.tasks.maze import maze_task
from ctm.tasks.mnist import mnist_task
from ctm.tasks.parity import parity_task
from ctm.tasks.task import Batch, LazyRows, Rows, Task, TensorRows
from ctm.tasks.text import text_task

__all__ = ["Batch", "LazyRows", "Rows", "Task", "TaskConfig", "TensorRows", "load_task"]


def load_task(config: TaskConfig, data_dir: Path | None = None) -> Task:
    """The task that a configuration names.

    Args:
        data_dir: the folder that holds the data; None lets a task that can fetch its data do so.
    """
    match config.name:
        case "digits":
            return digits_task(config)
        case "mnist":
            return mnist_task(config, data_dir)
        case "cifar10":
            return cifar10_task(config, data_dir)
        case "parity":
            return parity_task(config)
        case "maze":
            return maze_task(config)
        case "text":
            return text_task(config, data_dir)
