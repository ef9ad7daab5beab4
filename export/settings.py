"""What `ctm-export` can be asked for: dataclasses that check themselves; the command line only fills them in."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from export.agreement import ROW_COUNTS
from export.errors import ExportError

MOST_TICKS = 10_000
"""Of a tick cap. Graphs hold a table as long as the cap: at this length and 2,048 pairs it takes 80 MB."""

Folder = Annotated[Path | None, arg(metavar="FOLDER")]
Text = Annotated[str | None, arg(metavar="NAME")]
Certainty = Annotated[float | None, arg(metavar="0..1")]
Number = Annotated[float | None, arg(metavar="NUMBER")]
Count = Annotated[int | None, arg(metavar="COUNT")]


@dataclass(frozen=True, kw_only=True, slots=True)
class StopOptions:
    """What ends a thought unless its request says otherwise."""

    threshold: Certainty = None
    """Certainty at which a thought stops; not given: chosen on held-out training rows."""
    max_accuracy_loss: Annotated[float, arg(metavar="POINTS")] = 0.3
    """Thresholds are chosen so that held-out accuracy stays within this many percentage points of answering at the most
    certain tick of all: of certainty the smallest, of energy the largest."""
    max_bits_loss: Annotated[float, arg(metavar="PERCENT")] = 1.0
    """The same for models of text: how many percent more a byte may cost at the threshold."""
    max_noise_loss: Annotated[float, arg(metavar="PERCENT")] = 1.0
    """The same for models of diffusion: how many percent larger the error of the noise may be at the threshold."""
    patience: Count = None
    """A certain thought stops only when its top prediction has stayed the same over this many ticks."""
    energy_threshold: Number = None
    """Energy at or below which a thought stops, for models with an energy head; not given: chosen on held-out training
    rows, where it saves ticks there."""
    energy_delta: Number = None
    """A thought stops when its energy changes by less than this; for models with an energy head."""
    abstain_below: Certainty = None
    """Answers less certain than this are marked as abstained; not given: none, or what a model of diffusion was
    configured with, where such rows take the base path."""
    tick_cap: Count = None
    """The most ticks that a request may ask for; not given: twice the ticks that the model was trained with. At most
    10000."""

    def __post_init__(self) -> None:
        for option, value in (("--threshold", self.threshold), ("--abstain-below", self.abstain_below)):
            if value is not None and not 0 <= value <= 1:
                raise ExportError(f"{option} must be a certainty in [0, 1], got {value}")
        if not 0 <= self.max_accuracy_loss <= 100:
            raise ExportError(f"--max-accuracy-loss must be points in [0, 100], got {self.max_accuracy_loss}")
        if not 0 <= self.max_bits_loss <= 100:
            raise ExportError(f"--max-bits-loss must be percent in [0, 100], got {self.max_bits_loss}")
        if not 0 <= self.max_noise_loss <= 100:
            raise ExportError(f"--max-noise-loss must be percent in [0, 100], got {self.max_noise_loss}")
        for option, count in (("--patience", self.patience), ("--tick-cap", self.tick_cap)):
            if count is not None and count < 1:
                raise ExportError(f"{option} must be at least 1, got {count}")
        if self.tick_cap is not None and self.tick_cap > MOST_TICKS:
            raise ExportError(f"--tick-cap must be at most {MOST_TICKS}, got {self.tick_cap}")
        if self.energy_threshold is not None and not math.isfinite(self.energy_threshold):
            raise ExportError(f"--energy-threshold must be finite, got {self.energy_threshold}")
        if self.energy_delta is not None and not 0 <= self.energy_delta < math.inf:
            raise ExportError(f"--energy-delta must be finite and at least 0, got {self.energy_delta}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """How a model of diffusion draws unless its request says otherwise."""

    steps: Count = None
    """Reverse steps of a sample; not given: 20, or as many as there are levels of noise."""
    eta: Annotated[float | None, arg(metavar="0..1")] = None
    """How far a reverse step is random: 0 is deterministic (DDIM), 1 ancestral (DDPM); not given: 0."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ExportError(f"--steps must be at least 1, got {self.steps}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise ExportError(f"--eta must be in [0, 1], got {self.eta}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceOptions:
    """What a reference checkpoint does not say of itself."""

    input_shape: tuple[int, ...] = ()
    """Of one input row, e.g. 3 224 224."""
    input_name: Annotated[str, arg(metavar="NAME")] = "image"
    """What its input is called."""
    input_range: Annotated[tuple[float, float] | None, arg(metavar="LOW HIGH")] = None
    """Values outside are refused; not given: none are."""
    labels: Annotated[Path | None, arg(metavar="FILE")] = None
    """Text with one class name a line."""

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.input_shape):
            raise ExportError(f"--input-shape must be sizes of at least 1, got {self.input_shape}")
        if self.input_range is not None and not -math.inf < self.input_range[0] < self.input_range[1] < math.inf:
            raise ExportError(f"--input-range must be a lower and a higher finite number, got {self.input_range}")

    def names(self) -> list[str]:
        """The class names of the file, if there is one."""
        if self.labels is None:
            return []
        try:
            return self.labels.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ExportError(f"--labels {self.labels}: {error.strerror}; it must be one class name a line") from error
        except UnicodeDecodeError as error:
            met = f"byte 0x{error.object[error.start]:02x} at {error.start}"
            raise ExportError(f"--labels {self.labels} must be UTF-8, one class name a line; got {met}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """One call of `ctm-export`."""

    checkpoint: Annotated[Positional[Path | None], arg(metavar="CHECKPOINT")] = None
    """A checkpoint, a run's folder, which stands for its best one, or a Hugging Face repository that holds a
    checkpoint, ORG/REPO or ORG/REPO@REVISION."""
    reference: Annotated[str | None, arg(metavar="FOLDER_OR_ID")] = None
    """Instead of a checkpoint: a .pt file, a folder or a Hugging Face repository of the reference, ORG/REPO or
    ORG/REPO@REVISION."""
    store: Annotated[Path, arg(metavar="FOLDER")] = Path("model_store")
    """Where bundles are published, as STORE/NAME/VERSION; the version is the next free one."""
    name: Text = None
    """What the model is called; not given: as its task is."""
    description: Annotated[str, arg(metavar="SENTENCE")] = ""
    """For the model card."""
    data_dir: Folder = None
    """Where the task's data lies; not given: where training found it."""
    without_quality: FlagCreatePairsOff[bool] = False
    """Do not measure the model on its task, whose data is then not needed."""
    agreement_rows: Annotated[int, arg(metavar="COUNT")] = 1000
    """Rows that run freely to compare stopping ticks; at most 64 where there is no data."""
    only_onnx: FlagCreatePairsOff[bool] = False
    """Publish the ONNX graphs without TorchScript and weights: a third of the size, for ONNX Runtime alone."""
    tune_for: Literal["cpu", "gpu"] = "cpu"
    """What the ONNX graph is made for; it runs on both."""
    stop: Annotated[StopOptions, arg(name="")] = field(default_factory=StopOptions)
    sampling: Annotated[SamplingOptions, arg(name="")] = field(default_factory=SamplingOptions)
    input: Annotated[ReferenceOptions, arg(name="")] = field(default_factory=ReferenceOptions)

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.reference is None):
            met = "none" if self.checkpoint is None else "both"
            raise ExportError(f"either a checkpoint or --reference must say what is exported, got {met}")
        if self.checkpoint is not None and self.input != ReferenceOptions():
            raise ExportError("--input-shape, --input-name, --input-range and --labels go with --reference alone")
        if self.without_quality and self.data_dir is not None:
            raise ExportError("--data-dir is where quality is measured, --without-quality measures none; give one")
        if any("\ud800" <= sign <= "\udfff" for sign in self.description):
            raise ExportError(f"--description must be UTF-8, got {self.description!a}")
        if self.store.exists() and not self.store.is_dir():
            raise ExportError(f"--store must be a folder, {self.store} is none")
        if self.agreement_rows < max(ROW_COUNTS):
            raise ExportError(f"--agreement-rows must be at least {max(ROW_COUNTS)}, got {self.agreement_rows}")
