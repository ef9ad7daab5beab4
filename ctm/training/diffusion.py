"""Training CTM-controlled diffusion on a task's images, class by class."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.images import to_diffusion
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.diffusion.neuron_selection import Begun
from ctm.training.evaluate_diffusion import DiffusionEvaluation, evaluate_diffusion
from ctm.training.family import Family, Learned
from ctm.training.settings import ConfigError


class DiffusionFamily(Family):
    """A denoiser and the CTM that guides it."""

    name = "diffusion"

    def check(self) -> None:
        config, task = self._config, self.task
        if task.loss != "image" or len(task.input_shape) != 3 or task.input_shape[0] != 1:
            raise ConfigError(f"diffusion needs a task of grey images with one label each, got task {task.name}")
        _, height, width = task.input_shape
        if height != width or height % config.side:
            raise ConfigError(f"diffusion.side must divide the images' {height} x {width} pixels, got {config.side}")
        if config.classes != len(task.labels):
            raise ConfigError(f"diffusion.classes must be the task's {len(task.labels)}, got {config.classes}")
        if config.pipeline is not None:
            try:
                config.pipeline.check_present()
            except ValueError as error:
                raise ConfigError(str(error)) from error
        if config.selection is not None and config.selection.warmup_updates >= self.config.updates:
            raise ConfigError(
                f"diffusion.selection.warmup_updates must be below the {self.config.updates} updates of the run, "
                f"got {config.selection.warmup_updates}"
            )

    def build(self, seed: int) -> nn.Module:
        return EnhancedCTMDiffusion(self.config.model, self._config, seed=seed)

    def compile(self, model: nn.Module) -> None:
        thinker = _diffusion(model).thinker
        if thinker is not None:
            core = thinker.core
            core.tick = torch.compile(core.tick, dynamic=False)  # type: ignore[method-assign]  # of this instance

    def place(self, model: nn.Module, processes: int) -> None:
        if self._config.pipeline is not None and processes > 1:
            raise ConfigError(f"diffusion.pipeline is for one process with two devices, got {processes} processes")
        _diffusion(model).place()

    def project(self, model: nn.Module) -> list[Begun]:
        return _diffusion(model).after_update()

    def updates_alike(self, done: int) -> int:
        selection = self._config.selection
        return done if selection is None or done < selection.warmup_updates else done - selection.warmup_updates

    def learn(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Learned:
        loss = model(to_diffusion(inputs, self._config.side), targets)
        return Learned(loss.value, loss.right, loss.tick.float().mean() + 1)

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> DiffusionEvaluation:
        return evaluate_diffusion(_diffusion(model), self.task.held_out, self.config.report.batch_size, accelerator)

    def describe(self) -> dict[str, Any]:
        return {
            "family": self.name,
            "model": self.config.model.to_dict(),
            "diffusion": self._config.to_dict(),
        }

    @property
    def _config(self) -> DiffusionConfig:
        assert self.config.diffusion is not None, "diffusion has its settings"
        return self.config.diffusion


def _diffusion(model: nn.Module) -> EnhancedCTMDiffusion:
    assert isinstance(model, EnhancedCTMDiffusion), f"{type(model).__name__} is no diffusion model"
    return model
