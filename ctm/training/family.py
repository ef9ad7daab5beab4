"""What a kind of model must say of itself to be trained: how it is made, what it descends, how it is judged."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ctm.diffusion.neuron_selection import Begun
from ctm.judge import judge_predictions
from ctm.language.features import load_gpt2
from ctm.language.model import LanguageCTM
from ctm.model import CTM
from ctm.tasks import Task
from ctm.training.config import RunConfig
from ctm.training.evaluate import Evaluation, evaluate
from ctm.training.evaluate_diffusion import DiffusionEvaluation
from ctm.training.evaluate_text import TextEvaluation, evaluate_text
from ctm.training.fit import check_fit, check_language_fit
from ctm.training.objective import objective


class Learned(NamedTuple):
    """What a model made of some rows; scalars."""

    value: Tensor
    """The loss."""
    accuracy: Tensor
    """At the tick that rows are judged by."""
    answer_tick: Tensor
    """The mean of that tick, counted from 1."""


class Family(ABC):
    """One kind of model."""

    name: str
    """As checkpoints name it."""

    def __init__(self, config: RunConfig, task: Task) -> None:
        self.config, self.task = config, task

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigError unless the model can learn the task."""

    @abstractmethod
    def build(self, seed: int) -> nn.Module:
        """A new model; weights from torch's generator, pairs of neurons from the seed."""

    @abstractmethod
    def compile(self, model: nn.Module) -> None:
        """Compile the tick, not the loop around it: that would be compiled unrolled, for many minutes."""

    def place(self, model: nn.Module, processes: int) -> None:  # noqa: B027  # most models are on one device
        """Put parts of it on devices of their own; once it is on the run's device, before anything is learned.

        Raises:
            ConfigError: so many processes cannot train it so.
        """

    @abstractmethod
    def project(self, model: nn.Module) -> Sequence[Begun]:
        """Move decays back to where they mean something; after every update. Says which weights began anew."""

    def updates_alike(self, done: int) -> int:
        """How many of the updates done are since the weights last came to mean something else."""
        return done

    @abstractmethod
    def learn(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Learned:
        """Think about rows; `model` may be wrapped."""

    @abstractmethod
    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> Evaluation | TextEvaluation | DiffusionEvaluation:
        """Think about all held-out rows."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of the model: enough to build it again."""


class ThinkingFamily(Family):
    """A CTM on inputs of one shape."""

    name = "ctm"

    def check(self) -> None:
        check_fit(self.config.model, self.task)

    def build(self, seed: int) -> nn.Module:
        return CTM(self.config.model, seed=seed)

    def compile(self, model: nn.Module) -> None:
        assert isinstance(model, CTM), f"{type(model).__name__} is no CTM"
        model.tick = torch.compile(model.tick, dynamic=False)  # type: ignore[method-assign]  # of this instance

    def project(self, model: nn.Module) -> Sequence[Begun]:
        assert isinstance(model, CTM), f"{type(model).__name__} is no CTM"
        model.project_decays()
        return ()

    def learn(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Learned:
        thoughts = model(inputs)
        loss = objective(thoughts, targets, self.task.loss, self.config.loss)
        marks = judge_predictions(thoughts.predictions, targets, self.task.prediction_shape)
        return Learned(loss.value, marks.correct.gather(1, loss.tick[:, None]).mean(), loss.tick.float().mean() + 1)

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> Evaluation:
        assert isinstance(model, CTM), f"{type(model).__name__} is no CTM"
        batch_size, padding = self.config.report.batch_size, self.task.padding
        return evaluate(model, self.task.held_out, batch_size, accelerator, padding=padding)

    def describe(self) -> dict[str, Any]:
        return {"family": self.name, "model": self.config.model.to_dict()}


class LanguageFamily(Family):
    """GPT-2 + CTM."""

    name = "language"

    def check(self) -> None:
        check_language_fit(self.config, self.task)

    def build(self, seed: int) -> nn.Module:
        assert self.config.language is not None, "a language model has language settings"
        model = LanguageCTM(self.config.model, self.config.language, seed=seed)
        if self.config.language.gpt2:
            load_gpt2(model.gpt2, self.config.language)
        return model

    def compile(self, model: nn.Module) -> None:
        assert isinstance(model, LanguageCTM), f"{type(model).__name__} is no language model"
        if model.core is not None:
            model.advance = torch.compile(model.advance, dynamic=False)

    def project(self, model: nn.Module) -> Sequence[Begun]:
        assert isinstance(model, LanguageCTM), f"{type(model).__name__} is no language model"
        model.project_decays()
        return ()

    def learn(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Learned:
        loss = model(inputs, targets)
        return Learned(loss.value, loss.right.mean(), loss.tick.float().mean() + 1)

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> TextEvaluation:
        assert isinstance(model, LanguageCTM), f"{type(model).__name__} is no language model"
        return evaluate_text(model, self.task, self.config.report.batch_size, accelerator)

    def describe(self) -> dict[str, Any]:
        assert self.config.language is not None, "a language model has language settings"
        return {
            "family": self.name,
            "model": self.config.model.to_dict(),
            "language": self.config.language.to_dict(),
        }
