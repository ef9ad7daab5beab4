"""Everything that decides a training run, as dataclasses that cannot be wrong; files and options only fill them in."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ctm.config import CTMConfig
from ctm.diffusion.config import DiffusionConfig
from ctm.language.config import LanguageConfig
from ctm.tasks.config import TaskConfig, check_range


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserConfig:
    """AdamW and the course of its learning rate."""

    learning_rate: float = 1e-3
    """The highest, reached when the warm-up ends."""
    warmup_updates: int = 0
    """Updates over which the rate rises in a line; after them it falls along a cosine."""
    final_learning_rate: float = 1e-7
    """What the cosine falls to at the last update."""
    weight_decay: float = 0.0
    """Of matrices and larger only: biases, norms, decays and the start state are left alone."""
    beta_first: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta_second: float = 0.999
    """Decay of AdamW's mean of squared gradients."""
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    """Longest gradient, as the norm over all weights; 0 switches clipping off."""
    average_decay: float = 0.0
    """Share kept at each update by the running average of the weights; 0 switches it off. With an average, it is the
    average that is evaluated and exported."""

    def __post_init__(self) -> None:
        check_range("optimiser.learning_rate", self.learning_rate, 0.0, math.inf, open_below=True)
        check_range("optimiser.final_learning_rate", self.final_learning_rate, 0.0, self.learning_rate)
        check_range("optimiser.warmup_updates", self.warmup_updates, 0, math.inf)
        check_range("optimiser.weight_decay", self.weight_decay, 0.0, math.inf)
        check_range("optimiser.epsilon", self.epsilon, 0.0, math.inf, open_below=True)
        check_range("optimiser.clip_norm", self.clip_norm, 0.0, math.inf)
        for name in ("beta_first", "beta_second", "average_decay"):
            check_range(f"optimiser.{name}", getattr(self, name), 0.0, 1.0, open_above=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """How predictions are judged; the task says by which loss."""

    most_certain: bool = True
    """Learn from the most certain tick besides the best one (the paper's loss); false takes the last tick instead."""
    energy_beside: Literal["every_tick", "paper", "both"] = "every_tick"
    """What a model with an energy head learns to predict by, beside the energy's part: the cross-entropy of every tick
    alike, with which such models were published; the paper's loss; or both."""
    lookahead: int = 5
    """Moves of a maze's route that are learned beyond those that are right from its start on."""
    energy_margin: float = 10.0
    """Energy that a wrong prediction is pushed above; used by a model with an energy head."""
    energy_scale: float = 0.1
    """Weight of the energy's part in the loss."""

    def __post_init__(self) -> None:
        check_range("loss.lookahead", self.lookahead, 1, math.inf)
        check_range("loss.energy_margin", self.energy_margin, 0.0, math.inf)
        check_range("loss.energy_scale", self.energy_scale, 0.0, math.inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """What is written down, and how often, in updates."""

    every: int = 50
    """Between two lines of the log."""
    evaluate_every: int = 500
    """Between two evaluations on held-out rows."""
    checkpoint_every: int = 500
    """Between two checkpoints."""
    patience: int = 0
    """Evaluations without a new best after which the run ends; 0 trains to the last update."""
    keep: int = 3
    """Checkpoints kept; older ones are removed, the best one never."""
    batch_size: int = 500
    """Rows that are evaluated at once."""

    def __post_init__(self) -> None:
        for name in ("every", "evaluate_every", "checkpoint_every", "keep", "batch_size"):
            check_range(f"report.{name}", getattr(self, name), 1, math.inf)
        check_range("report.patience", self.patience, 0, math.inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One training run: the same configuration gives the same weights, to the bit, on the same machine."""

    name: str
    """The run's folder is named so."""
    output_dir: Path = Path("runs")
    """Holds the folders of runs."""
    data_dir: Path | None = None
    """Where the task's data lies; a task that can fetch its data does so when this is not given."""
    seed: int = 0
    """Fixes the first weights, the neuron pairs, the order of the rows and their variants."""
    updates: int
    """How often the weights are changed."""
    batch_size: int
    """Rows learned from at one update, over all processes and parts."""
    parts: int = 1
    """Parts that each process splits its rows into, their gradients accumulated: less memory, the same update up to
    rounding. Not so with batch normalisation (backbones other than none and parity) or dropout: a part is normalised
    by its own rows, and the running statistics move once for each part."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is mixed: weights and sums stay float32."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes an accelerator where there is one."""
    threads: int | None = None
    """CPU threads of each process; not given: torch decides."""
    compile: bool = False
    """Compile the tick: faster once it runs, but a minute or more to begin with, and a C++ compiler is needed."""
    task: TaskConfig
    model: CTMConfig
    language: LanguageConfig | None = None
    """The GPT-2 that the model thinks about; only for a language model."""
    diffusion: DiffusionConfig | None = None
    """The denoiser that the model guides; only for a diffusion model."""
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def __post_init__(self) -> None:
        if not self.name or self.name in (".", "..") or "/" in self.name:
            raise ValueError(f"name must be the name of a folder, got {self.name!r}")
        check_range("seed", self.seed, 0, 2**63, open_above=True)
        check_range("updates", self.updates, 1, math.inf)
        check_range("batch_size", self.batch_size, 1, math.inf)
        check_range("parts", self.parts, 1, math.inf)
        if self.threads is not None:
            check_range("threads", self.threads, 1, math.inf)
        if (self.language is not None) != (self.task.name == "text"):
            met = "language settings" if self.language is not None else "no language settings"
            raise ValueError(f"task text and language settings go together, got task {self.task.name} and {met}")
        if self.language is not None:
            self.language.check_core(self.model)
        if self.diffusion is not None:
            if self.language is not None:
                raise ValueError("language and diffusion settings describe two models, expected one of them")
            self.diffusion.check_core(self.model)
        if self.batch_size % self.parts:
            raise ValueError(f"batch_size must divide into {self.parts} equal parts, got {self.batch_size}")
        if self.optimiser.warmup_updates >= self.updates:
            raise ValueError(
                f"optimiser.warmup_updates must be below the {self.updates} updates of the run, "
                f"got {self.optimiser.warmup_updates}"
            )

    @property
    def folder(self) -> Path:
        """Where the run writes everything."""
        return self.output_dir / self.name
