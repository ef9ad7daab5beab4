"""What CTM-controlled diffusion is made of, beside its CTM: one frozen configuration that cannot be wrong."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from ctm.config import CTMConfig
from ctm.diffusion.bidirectional import BidirectionalConfig
from ctm.diffusion.consciousness import ConsciousnessConfig
from ctm.diffusion.core_checks import check_core_fits, check_cores
from ctm.diffusion.granularity import GranularityConfig
from ctm.diffusion.hierarchical import HierarchicalConfig
from ctm.diffusion.jepa import JEPAConfig
from ctm.diffusion.neuron_selection import SelectionConfig
from ctm.diffusion.noise import ScheduleName, Target
from ctm.diffusion.patches import PatcherConfig
from ctm.diffusion.senses_checks import check_senses
from ctm.diffusion.tracker import TrackerConfig
from ctm.plain import from_plain

_COUNTS = ("side", "patch", "classes", "levels", "bins", "width", "layers", "heads", "thought_tokens")
_SWITCHES = (
    "refine",
    "hierarchical",
    "reasoning",
    "consciousness",
    "selection",
    "tracker",
    "granularity",
    "patcher",
    "jepa",
)
"""What has no meaning without a thought."""
_SHARES = ("base_share", "any_tick", "confidence_threshold")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """What is descended beside the denoiser's error, and how much each counts."""

    bins: float = 0.1
    """Of the thought's own loss, the cross-entropy over bins."""
    entropy: float = 0.1
    """Of the patchers' next-byte loss; entropy models alone learn by it."""
    jepa: float = 0.1
    """Of telling the tokens of a stretch of the clean image."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= (value := getattr(self, field.name)) < math.inf:
                raise ValueError(f"diffusion.weights.{field.name} must be at least 0, got {value}")

    def of(self, name: str) -> float:
        """The weight of the loss of this name."""
        weight: float = getattr(self, name)
        return weight


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionConfig:
    """The denoiser, the noise, and how a thought guides the one against the other.

    The letters in brackets are the ones used in shapes throughout `ctm.diffusion`.
    """

    side: int
    """[S] Pixels along each side of an image, of one channel. Larger images of a task are pooled down to it."""

    patch: int = 2
    """[p] Pixels along each side of a patch; divides `side`. Both the thought and the denoiser see patches."""

    classes: int = 10
    """Of which a sample can be asked for."""

    levels: int = 200
    """[L] Levels of noise."""

    schedule: ScheduleName = "cosine"
    """How much noise each level has."""

    target: Target = "noise"
    """What the denoiser predicts."""

    bins: int = 8
    """[K] Bins of the clean value, of which a thought gives a distribution for each pixel."""

    width: int = 64
    """[E] Of the denoiser's tokens."""

    layers: int = 3
    """Of the denoiser."""

    heads: int = 4
    """Of the denoiser; divides `width`."""

    thought_tokens: int = 4
    """[G] Tokens that a thought adds to those which the denoiser's attention sees."""

    guided: bool = True
    """Whether a thought guides the denoiser; false leaves the denoiser alone, which is what a thought has to beat."""

    base_share: float = 0.15
    """Share of the rows that are denoised without their thought while training: they teach the base path."""

    any_tick: float = 0.5
    """Share of the guided rows whose denoiser is guided by a tick drawn at random rather than by the most certain one,
    so that every tick learns to guide."""

    refine: bool = False
    """Whether each reverse step's estimate of the clean image is handed to the next one's thought."""

    hierarchical: HierarchicalConfig | None = None
    """Lets a core of two speeds think, a slow level guiding a fast one."""

    reasoning: BidirectionalConfig | None = None
    """Lets a controller move a thought back and forward, and end it."""

    consciousness: ConsciousnessConfig | None = None
    """Lets a thought take in as much of the image as it is awake."""

    selection: SelectionConfig | None = None
    """Chooses the pairs of neurons that syncs read, once, by what neurons did while the model warmed up."""

    tracker: TrackerConfig | None = None
    """Tells the thought's tokens of each other's whereabouts and of the level of noise."""

    granularity: GranularityConfig | None = None
    """Adds to the thought's tokens what bits, bytes, words and blocks of the noisy image say."""

    patcher: PatcherConfig | None = None
    """Gives the thought further tokens: patches of the noisy image's bytes, short where they surprise."""

    jepa: JEPAConfig | None = None
    """Teaches the senses to tell one stretch of the clean image from another of the noisy one."""

    dynamic: PatcherConfig | None = None
    """Has the denoiser work on dynamic patches of the noisy image's bytes; None on those of the grid."""

    weights: LossWeights = LossWeights()
    """Of the losses beside the denoiser's error."""

    confidence_threshold: float = 0.0
    """A row whose thought is less certain abstains: it takes the base path at that reverse step. 0: none does."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"diffusion.{name} must be a whole number of at least 1, got {value!r}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"diffusion.{name} must be in [0, 1], got {getattr(self, name)}")
        for name, choices in (("schedule", get_args(ScheduleName)), ("target", get_args(Target))):
            if getattr(self, name) not in choices:
                raise ValueError(f"diffusion.{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.bins < 2 or self.levels < 2:
            raise ValueError(f"diffusion.bins and levels must be at least 2, got {self.bins} and {self.levels}")
        if self.side % self.patch:
            raise ValueError(f"diffusion.patch must divide side {self.side}, got {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"diffusion.heads must divide width {self.width}, got {self.heads}")
        if self.width % 2:
            raise ValueError(f"diffusion.width must be even, for sines and cosines of the level, got {self.width}")
        check_cores(
            hierarchical=self.hierarchical,
            reasoning=self.reasoning,
            consciousness=self.consciousness,
            selection=self.selection,
        )
        check_senses(
            side=self.side,
            patch=self.patch,
            width=self.width,
            tracker=self.tracker,
            granularity=self.granularity,
            patcher=self.patcher,
            dynamic=self.dynamic,
            jepa=self.jepa,
        )
        if not self.guided and (useless := [name for name in _SWITCHES if getattr(self, name)]):
            raise ValueError(f"diffusion.{useless[0]} needs a thought, got guided = false")

    @property
    def tokens(self) -> int:
        """[P] Patches of an image."""
        return (self.side // self.patch) ** 2

    @property
    def fed(self) -> dict[str, tuple[int, ...]]:
        """What a reverse step hands to the thought of the next, by name, with the shapes of one row."""
        return {"estimate": (self.side, self.side)} if self.refine else {}

    def check_core(self, core: CTMConfig) -> None:
        """Raise ValueError unless a CTM can think about such images."""
        answer = (self.side**2, self.bins)
        expected = {
            "backbone": "none",
            "positional": "none",
            "in_channels": self.width,
            "input_shape": (self.width, self.tokens),
            "out_dims": self.side**2 * self.bins,
            "prediction_shape": answer,
        }
        for name, value in expected.items():
            if getattr(core, name) != value:
                raise ValueError(
                    f"model.{name} must be {value!r} for diffusion of {self.side} x {self.side} pixels in patches of "
                    f"{self.patch}, {self.bins} bins and width {self.width}, got {getattr(core, name)!r}"
                )
        check_core_fits(core, hierarchical=self.hierarchical, reasoning=self.reasoning, selection=self.selection)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DiffusionConfig":
        """The inverse of `to_dict`; raises ValueError, as `from_plain` does."""
        return from_plain(cls, values, "diffusion")
