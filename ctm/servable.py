"""Any of our models in the form that is exported and served, and the same model thinking as it was trained.

Export writes the former and compares it with the latter, so it need not know one family from another.
"""

# Shapes: N rows.

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctm import program
from ctm.attention import MaskedContext
from ctm.config import CTMConfig
from ctm.diffusion import program as diffusion_program
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.language import program as language_program
from ctm.language.model import LanguageCTM
from ctm.model import CTM, TickOutput
from ctm.program import Program, TensorSpec, pack_context, pack_state

Model = CTM | LanguageCTM | EnhancedCTMDiffusion

_DATATYPES = {"FP32": torch.float32, "INT64": torch.int64, "BOOL": torch.bool}


class EagerTick(NamedTuple):
    """One tick of the model itself: what goes into a `tick` graph and what should come out."""

    arguments: tuple[Tensor, ...]
    """State; the context stays the same."""
    results: tuple[Tensor, ...]


class Servable(ABC):
    """A model with its program."""

    program: Program
    config: CTMConfig
    """Of the CTM that thinks."""

    @abstractmethod
    def encode(self) -> nn.Module:
        """The program's `encode`: inputs to context."""

    @abstractmethod
    def tick(self, tick_cap: int, *, convolve: bool = False) -> nn.Module:
        """The program's `tick`: context and state to the next state and outputs; see `ctm.program.Tick`."""

    def finish(self) -> nn.Module | None:
        """The program's `finish`; None where a thought's end has no part in the next thought's input."""
        return None

    @abstractmethod
    def start(self) -> dict[str, Tensor]:
        """The start value of every state tensor by its name, without the row dimension."""

    @abstractmethod
    def examples(self, rows: int) -> tuple[Tensor, ...]:
        """Inputs of the right shapes, to trace graphs with."""

    @abstractmethod
    def eager_context(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the model itself makes of inputs, as the program's context tensors."""

    @abstractmethod
    def eager_ticks(self, inputs: Sequence[Tensor]) -> Iterator[EagerTick]:
        """Every tick that the model itself makes of these rows, as the program's tensors."""


class ServableCTM(Servable):
    """A CTM on inputs of one shape."""

    def __init__(self, model: CTM, input_name: str) -> None:
        """Raises ValueError when the configuration does not know the shape of an input."""
        self._model, self.config = model, model.config
        self.program = program.specify(model, input_name)

    def encode(self) -> nn.Module:
        return program.Encode(self._model).eval()

    def tick(self, tick_cap: int, *, convolve: bool = False) -> nn.Module:
        return program.Tick(self._model, tick_cap, convolve=convolve).eval()

    def start(self) -> dict[str, Tensor]:
        return program.start_values(self._model)

    def examples(self, rows: int) -> tuple[Tensor, ...]:
        return (torch.zeros(rows, *self._model.config.input_shape),)

    def eager_context(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return pack_context(self._model.encode(*inputs))

    def eager_ticks(self, inputs: Sequence[Tensor]) -> Iterator[EagerTick]:
        model = self._model
        context, state = model.encode(*inputs), model.start(len(inputs[0]))
        done = torch.zeros(len(inputs[0]), dtype=torch.int64)
        for root_beta_action, root_beta_out in zip(*model.root_beta_table(model.config.ticks), strict=True):
            before = pack_state(state, done)
            state, output = model.tick(context, state, root_beta_action, root_beta_out)
            done = done + 1
            yield EagerTick(before, (*pack_state(state, done), *self._outputs(output)))

    def _outputs(self, output: TickOutput) -> list[Tensor]:
        outputs = {
            "prediction": torch.unflatten(output.prediction, -1, self._model.config.answer_shape),
            "certainty": output.certainty,
            "energy": output.energy,
            "attention": output.attention,
        }
        wanted = [outputs[spec.name] for spec in self.program.outputs]
        return [tensor for tensor in wanted if tensor is not None]


class ServableLanguage(Servable):
    """GPT-2 + CTM: a row is a text so far."""

    def __init__(self, model: LanguageCTM) -> None:
        """Raises ValueError for a GPT-2 alone."""
        self._model, self._core, self.config = model, language_program.core_of(model), model.config
        self.program = language_program.specify(model)

    def encode(self) -> nn.Module:
        return language_program.Encode(self._model).eval()

    def tick(self, tick_cap: int, *, convolve: bool = False) -> nn.Module:
        return language_program.Tick(self._model, tick_cap, convolve=convolve).eval()

    def start(self) -> dict[str, Tensor]:
        return program.start_values(self._core)

    def examples(self, rows: int) -> tuple[Tensor, ...]:
        # Shorter than the window, so that a size in the graphs is either the one or the other.
        length = self.program.inputs[0].buckets[0]
        return torch.zeros(rows, length, dtype=torch.int64), torch.full((rows,), length)

    def eager_context(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        context, features_NE = self._read(*inputs)
        mask = torch.where(context.hidden.squeeze(1), language_program.HIDDEN, 0.0)
        no_thought = self._core.readout.bias.expand_as(features_NE)
        alpha = self._model.alpha
        return context.keys, context.values, mask, self._model.logits(alpha * no_thought + (1 - alpha) * features_NE)

    def eager_ticks(self, inputs: Sequence[Tensor]) -> Iterator[EagerTick]:
        model, core, rows = self._model, self._core, len(inputs[0])
        context, features_NE = self._read(*inputs)
        state, done = core.start(rows), torch.zeros(rows, dtype=torch.int64)
        for root_beta_action, root_beta_out in zip(*core.root_beta_table(core.config.ticks), strict=True):
            before = pack_state(state, done)
            state, seen = core.advance(context, state, root_beta_action, root_beta_out)
            done = done + 1
            logits = model.logits(model.mix(seen.sync_out, features_NE))
            outputs = (logits, model.certainty(logits), seen.attention)
            yield EagerTick(before, (*pack_state(state, done), *outputs))

    def _read(self, tokens: Tensor, length: Tensor) -> tuple[MaskedContext, Tensor]:
        """What the thought after each text's last token looks at, and GPT-2's features there, [N, E]."""
        features, context = self._model.encode(tokens)
        assert context is not None, "the model thinks"
        hidden = torch.arange(tokens.shape[1]) >= length[:, None, None]
        return context._replace(hidden=hidden), features[torch.arange(len(tokens)), length - 1]


class ServableDiffusion(Servable):
    """CTM-controlled diffusion: a row is an image at one level of noise, and the end of its thought a reverse step.

    A tick of the model does not show the state that it came from. So what is compared tick by tick is the program in
    torch; the model itself draws whole samples, and those are compared as well.
    """

    def __init__(self, model: EnhancedCTMDiffusion) -> None:
        """Raises ValueError for a denoiser alone."""
        finish = diffusion_program.specify_finish(model)
        self.model, self._thinker = model, diffusion_program.thinker_of(model)
        self.config = self._thinker.config
        self.program = dataclasses.replace(
            diffusion_program.specify(model), finish_inputs=finish.arguments, finish_outputs=finish.results
        )

    def encode(self) -> nn.Module:
        return diffusion_program.Encode(self.model).eval()

    def tick(self, tick_cap: int, *, convolve: bool = False) -> nn.Module:
        return diffusion_program.tick(self.model, tick_cap, convolve=convolve).eval()

    def finish(self) -> nn.Module:
        return diffusion_program.ReverseStep(self.model).eval()

    def start(self) -> dict[str, Tensor]:
        return self._thinker.start_values()

    def examples(self, rows: int) -> tuple[Tensor, ...]:
        return examples_of(self.program.inputs, rows)

    def eager_context(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        context: tuple[Tensor, ...] = self.encode()(*inputs)
        return context

    def eager_ticks(self, inputs: Sequence[Tensor]) -> Iterator[EagerTick]:
        tick, context, rows = self.tick(self.config.ticks), self.eager_context(inputs), len(inputs[0])
        state = tuple(value.expand(rows, *value.shape) for value in self.start().values())
        for _ in range(self.config.ticks):
            results = tick(*context, *state)
            yield EagerTick(state, results)
            state = results[: len(state)]


def examples_of(specs: Sequence[TensorSpec], rows: int) -> tuple[Tensor, ...]:
    """Zeros of the right shapes and datatypes."""
    return tuple(torch.zeros(rows, *spec.shape, dtype=_DATATYPES[spec.datatype]) for spec in specs)


def servable(model: Model, input_name: str = "input") -> Servable:
    """A model with its program.

    Args:
        input_name: what a served CTM calls its input; those of other models have names of their own.

    Raises:
        ValueError: the model makes no program; says why.
    """
    if isinstance(model, LanguageCTM):
        return ServableLanguage(model)
    return ServableDiffusion(model) if isinstance(model, EnhancedCTMDiffusion) else ServableCTM(model, input_name)
