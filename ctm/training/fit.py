"""Whether a model can learn a task: their shapes are compared before anything runs."""

from ctm.config import CTMConfig
from ctm.tasks import Task
from ctm.training.config import RunConfig
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


def check_language_fit(config: RunConfig, task: Task) -> None:
    """The same for a language model and the corpus that it reads."""
    language = config.language
    assert language is not None, "a language model has language settings"
    if not config.loss.most_certain:
        raise ConfigError(
            "a language model learns from its last tick by language.final_only, got loss.most_certain = false"
        )
    (vocabulary,), (length,) = task.prediction_shape, task.input_shape
    if language.vocabulary != vocabulary:
        raise ConfigError(f"the corpus needs language.vocabulary = {vocabulary}, got {language.vocabulary}")
    if length > language.context:
        raise ConfigError(f"task.text.length must be at most language.context, {language.context}, got {length}")
