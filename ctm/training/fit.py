"""Whether a model can learn a task: their shapes are compared before anything runs."""

from ctm.config import CTMConfig
from ctm.tasks import Task
from ctm.training.settings import ConfigError


def check_fit(model: CTMConfig, task: Task) -> None:
    """Raise ConfigError, naming the first key of the model that the task cannot go with."""
    if model.answer_shape != task.prediction_shape:
        raise ConfigError(
            f"task {task.name} needs model.out_dims and model.prediction_shape for predictions of shape "
            f"{list(task.prediction_shape)}, got {list(model.answer_shape)}"
        )
    if model.input_shape != task.input_shape:
        raise ConfigError(
            f"task {task.name} needs model.input_shape = {list(task.input_shape)}, got {list(model.input_shape)}"
        )
    if model.energy_hidden is not None and task.loss != "image":
        raise ConfigError(f"model.energy_hidden needs a task of one label a row, {task.name} has one at each position")
