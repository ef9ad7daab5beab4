"""The command `ctm-export`: from a checkpoint to a bundle that a server can serve."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from torch import Tensor

from ctm.checkpoint import CheckpointError
from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.language.model import LanguageCTM
from ctm.reference import ReferenceFormatError
from export.build import Publication, build_bundle
from export.bundle import check_name
from export.energy import energy_margin
from export.errors import ExportError
from export.interrupt import Terminated, terminable
from export.manifest import AnyQuality
from export.quality import Wishes, measure_on_task
from export.quality_diffusion import measure_on_images
from export.quality_text import measure_on_text
from export.settings import MOST_TICKS, Command, SamplingOptions, StopOptions
from export.source import Source, from_checkpoint, from_reference, portable, random_inputs

PROGRAM = "ctm-export"
DESCRIPTION = """Export a Continuous Thought Machine as a bundle that ctm-serve serves.

  ctm-export CHECKPOINT --store model_store --name NAME            what ctm-train made
  ctm-export --reference FOLDER_OR_ID --input-shape 3 224 224 --name NAME   what others trained

The bundle holds the program as ONNX and TorchScript graphs, compared with the model tick by tick, its start values and
weights, and a model card measured on the task's test rows. An artefact that disagrees is not published."""
EXPECTED = (ExportError, CheckpointError, ReferenceFormatError, OSError)
REFERENCE_ROWS = 64


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the bundle is published, 2 when it cannot be, 130 or 143 when told to stop."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command = tyro.cli(Command, args=list(arguments), prog=PROGRAM, description=DESCRIPTION)
        with terminable():
            print(run(command, portable([PROGRAM, *arguments])))
    except EXPECTED as error:
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; nothing was published", file=sys.stderr)
        return 130
    except Terminated:
        print(f"{PROGRAM}: terminated; nothing was published", file=sys.stderr)
        return 143
    return 0


def run(command: Command, typed: str) -> Path:
    """Export and publish; returns the bundle's folder.

    Args:
        typed: the command as the card shows it.
    """
    source, stop = _source(command), command.stop
    name = _name(command, source)
    check_name(name)
    _check_model(stop, source)
    _check_sampling(command.sampling, source)
    measured = _measure(command, source)
    publication = Publication(
        store=command.store,
        name=name,
        tick_cap=_tick_cap(stop, source),
        certainty_threshold=measured.threshold,
        abstain_below=_abstain_below(stop, source),
        patience=stop.patience,
        energy_threshold=measured.energy_threshold,
        energy_delta=stop.energy_delta,
        description=command.description,
        command=typed,
        convolve=command.tune_for == "cpu",
        only_onnx=command.only_onnx,
        **{name: value for name, value in dataclasses.asdict(command.sampling).items() if value is not None},
    )
    _say(f"exporting {publication.name}: {source.servable.config.ticks} ticks, at most {publication.tick_cap}")
    return build_bundle(measured.source, publication, measured.inputs, measured.quality)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """What looking at data gave."""

    source: Source
    inputs: tuple[Tensor, ...]
    """Rows to compare artefacts and eager on, a tensor for each input of the program."""
    threshold: float | None
    energy_threshold: float | None
    quality: AnyQuality | None = None


def _source(command: Command) -> Source:
    if command.checkpoint is not None:
        return from_checkpoint(command.checkpoint)
    assert command.reference is not None, "a command names a checkpoint or a reference"
    options = command.input
    return from_reference(
        command.reference,
        input_shape=options.input_shape,
        input_name=options.input_name,
        input_range=options.input_range,
        labels=options.names(),
    )


def _check_model(stop: StopOptions, source: Source) -> None:
    """What only the model can tell of an option."""
    ticks, cap = source.servable.config.ticks, _tick_cap(stop, source)
    if ticks > MOST_TICKS:
        raise ExportError(f"at most {MOST_TICKS} ticks can be exported, the model has {ticks}")
    if cap < ticks:
        raise ExportError(f"--tick-cap must be at least the model's {ticks} ticks, got {cap}")
    if stop.patience is not None and stop.patience > cap:
        raise ExportError(f"--patience must be at most the tick cap, {cap}, got {stop.patience}")
    for option, value in (("--energy-threshold", stop.energy_threshold), ("--energy-delta", stop.energy_delta)):
        if value is not None and all(spec.role != "energy" for spec in source.program.outputs):
            raise ExportError(f"{option} needs a model with an energy head, this one has none")


def _check_sampling(sampling: SamplingOptions, source: Source) -> None:
    model = source.model
    if isinstance(model, EnhancedCTMDiffusion):
        if sampling.steps is not None and sampling.steps > model.diffusion.levels:
            raise ExportError(
                f"--steps must be at most the model's {model.diffusion.levels} levels, got {sampling.steps}"
            )
    elif sampling != SamplingOptions():
        raise ExportError(f"--steps and --eta are for models of diffusion, this one is of family {source.family}")


def _abstain_below(stop: StopOptions, source: Source) -> float | None:
    if stop.abstain_below is None and isinstance(source.model, EnhancedCTMDiffusion):
        return source.model.diffusion.confidence_threshold
    return stop.abstain_below


def _tick_cap(stop: StopOptions, source: Source) -> int:
    return min(2 * source.servable.config.ticks, MOST_TICKS) if stop.tick_cap is None else stop.tick_cap


def _name(command: Command, source: Source) -> str:
    if command.name is not None:
        return command.name
    if not source.task:
        raise ExportError("--name must say what the model is called")
    return source.task


def _measure(command: Command, source: Source) -> _Measured:
    """Quality, the thresholds to ship, and the rows to compare on: from the model's task, if its data is at hand."""
    if command.without_quality or not source.config:
        rows = min(command.agreement_rows, REFERENCE_ROWS)
        return _Measured(
            source=source,
            inputs=random_inputs(source, rows),
            threshold=command.stop.threshold,
            energy_threshold=command.stop.energy_threshold,
        )
    if "task" not in source.config:
        raise ExportError("the checkpoint does not say what its task is; --without-quality exports without measuring")
    data_dir = _trained_on(source) if command.data_dir is None else command.data_dir
    model = source.model
    if isinstance(model, LanguageCTM):
        return _measure_text(command, source, model, data_dir)
    if isinstance(model, EnhancedCTMDiffusion):
        return _measure_images(command, source, model, data_dir)
    quality, inputs, data = measure_on_task(
        model,
        source.config["task"],
        data_dir,
        wishes=Wishes(
            threshold=command.stop.threshold,
            energy_threshold=command.stop.energy_threshold,
            energy_delta=command.stop.energy_delta,
            max_accuracy_loss=command.stop.max_accuracy_loss / 100,
        ),
        energy_margin=energy_margin(source.config),
        rows=command.agreement_rows,
        say=_say,
    )
    return _Measured(
        source=dataclasses.replace(source, data=data),
        inputs=(inputs,),
        threshold=quality.threshold,
        energy_threshold=None if quality.energy is None else quality.energy.threshold,
        quality=quality,
    )


def _measure_text(command: Command, source: Source, model: LanguageCTM, data_dir: Path | None) -> _Measured:
    quality, inputs, data = measure_on_text(
        model,
        source.config["task"],
        source.files,
        data_dir,
        threshold=command.stop.threshold,
        max_bits_loss=command.stop.max_bits_loss / 100,
        rows=command.agreement_rows,
        say=_say,
    )
    return _Measured(
        source=dataclasses.replace(source, data=data),
        inputs=inputs,
        threshold=quality.shipped.threshold,
        energy_threshold=None,
        quality=quality,
    )


def _measure_images(command: Command, source: Source, model: EnhancedCTMDiffusion, data_dir: Path | None) -> _Measured:
    quality, inputs, data = measure_on_images(
        model,
        source.config["task"],
        data_dir,
        threshold=command.stop.threshold,
        abstain_below=_abstain_below(command.stop, source) or 0.0,
        max_noise_loss=command.stop.max_noise_loss / 100,
        rows=command.agreement_rows,
        say=_say,
    )
    return _Measured(
        source=dataclasses.replace(source, data=data),
        inputs=inputs,
        threshold=quality.shipped.threshold,
        energy_threshold=None,
        quality=quality,
    )


def _trained_on(source: Source) -> Path | None:
    """The folder that training read its data from, if it is still there."""
    data_dir = source.data_dir
    return data_dir if data_dir is not None and data_dir.is_dir() else None


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
