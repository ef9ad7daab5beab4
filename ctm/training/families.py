"""The kinds of models that are trained: which one a run's configuration describes."""

from ctm.tasks import Task
from ctm.training.config import RunConfig
from ctm.training.diffusion import DiffusionFamily
from ctm.training.family import Family, LanguageFamily, ThinkingFamily


def family_of(config: RunConfig, task: Task) -> Family:
    """The kind of model that a run trains."""
    if config.language is not None:
        return LanguageFamily(config, task)
    return ThinkingFamily(config, task) if config.diffusion is None else DiffusionFamily(config, task)
