"""What CTM-controlled diffusion is made of, beside its CTM: one frozen configuration that cannot be wrong."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from ctm.config import CTMConfig
from ctm.diffusion.basal_ganglia import BasalGangliaConfig
from ctm.diffusion.bidirectional import BidirectionalConfig
from ctm.diffusion.consciousness import ConsciousnessConfig
from ctm.diffusion.control_widths import check_widths
from ctm.diffusion.core_checks import check_core_fits, check_cores
from ctm.diffusion.denoiser_attention import check_attention
from ctm.diffusion.emotion import EmotionConfig
from ctm.diffusion.goal import GoalConfig
from ctm.diffusion.granularity import GranularityConfig
from ctm.diffusion.hierarchical import HierarchicalConfig
from ctm.diffusion.jepa import JEPAConfig
from ctm.diffusion.linear_attention import LinearAttentionConfig
from ctm.diffusion.mirror import MirrorConfig
from ctm.diffusion.neuron_selection import SelectionConfig
from ctm.diffusion.noise import ScheduleName, Target
from ctm.diffusion.patches import PatcherConfig
from ctm.diffusion.pipeline import PipelineConfig
from ctm.diffusion.senses_checks import check_senses
from ctm.diffusion.synaptic_empathy import SynapticEmpathyConfig
from ctm.diffusion.tracker import TrackerConfig
from ctm.diffusion.wina import WINAConfig
from ctm.plain import from_plain

_COUNTS = ("side", "patch", "classes", "levels", "bins", "width", "layers", "heads", "thought_tokens")
WATCHING = ("empathy", "emotion", "goal", "mirror")
"""What watches another thought."""
_THINKING = ("hierarchical", "reasoning", "consciousness", "selection")
_SEEING = ("refine", "tracker", "granularity", "patcher", "jepa")
_SWITCHES = (*_SEEING, *_THINKING, "basal_ganglia", *WATCHING, "pipeline")
"""What has no meaning without a thought."""
_OF_THE_GRID = ("twice", "wina", "linear_attention")
"""What the denoiser over dynamic patches does not do."""
_SHARES = ("base_share", "any_tick", "confidence_threshold")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """What is descended beside the denoiser's error, and how much each counts."""

    bins: float = 0.1
    """Of the thought's own loss, the cross-entropy over bins."""
    base: float = 0.5
    """Of the base path's error where every row has one."""
    entropy: float = 0.1
    """Of the patchers' next-byte loss; entropy models alone learn by it."""
    jepa: float = 0.1
    """Of telling the tokens of a stretch of the clean image."""

    value: float = 0.1
    """Of what the basal ganglia expect of a row: the squared error of the reward."""

    gate: float = 0.01
    """Of what they let through, by the reward that was not expected."""

    goal: float = 0.1
    """Of telling the class another thought was asked for: cross-entropy."""

    empathy: float = 0.01
    """Of one minus resonance with another thought."""

    selfless: float = 0.01
    """Of one minus the reward for bringing another's estimate nearer the clean image."""

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

    margin: int = 0
    """[m] Pixels on each side of a patch that its token is told of as well. Without any, attention has to find a
    patch's neighbours before it can denoise across an edge, which takes it many updates."""

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

    twice: bool = False
    """Whether the guided path is the base path, gone through the layers once more with the thought. Both then learn
    from every row; the base path by the loss `base`. A denoiser alone goes through its layers twice: as many
    computations as a guided one, so that what a thought gains can be told from what a second round does."""

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

    basal_ganglia: BasalGangliaConfig | None = None
    """Whether what guides is gated, channel by channel, and how."""

    empathy: SynapticEmpathyConfig | None = None
    """Whether a thought's neurons are drawn to another thought's where their traces run alike."""

    emotion: EmotionConfig | None = None
    """Whether codes of the own and of another thought's activity move what guides."""

    goal: GoalConfig | None = None
    """Whether what another thought is believed to be after moves what guides."""

    mirror: MirrorConfig | None = None
    """Whether a thought leans towards helping another: emotion and goal of its own, and a reward."""

    weights: LossWeights = LossWeights()
    """Of the losses beside the denoiser's error."""

    wina: WINAConfig | None = None
    """How much of what its layers see the denoiser drops; None drops nothing."""

    linear_attention: LinearAttentionConfig | None = None
    """The denoiser's attention at a cost linear in its tokens; None is softmax attention."""

    checkpoint_gradients: bool = False
    """Whether ticks and layers of the denoiser are computed again for the backward pass instead of being kept."""

    pipeline: PipelineConfig | None = None
    """Two devices on which thought and denoiser learn at the same time; None has them take turns."""

    confidence_threshold: float = 0.0
    """A row whose thought is less certain abstains: it takes the base path at that reverse step. 0: none does."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"diffusion.{name} must be a whole number of at least 1, got {value!r}")
        if isinstance(self.margin, bool) or not isinstance(self.margin, int) or self.margin < 0:
            raise ValueError(f"diffusion.margin must be a whole number of at least 0, got {self.margin!r}")
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
        if self.width % 4:
            raise ValueError(
                f"diffusion.width must be a multiple of 4, for codes of rows and columns, got {self.width}"
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
        check_cores(
            hierarchical=self.hierarchical,
            reasoning=self.reasoning,
            consciousness=self.consciousness,
            selection=self.selection,
        )
        if self.dynamic is not None and (other := [name for name in _OF_THE_GRID if getattr(self, name)]):
            raise ValueError(f"diffusion.{other[0]} and diffusion.dynamic are of two denoisers, got both")
        if not self.guided and (useless := [name for name in _SWITCHES if getattr(self, name)]):
            raise ValueError(f"diffusion.{useless[0]} needs a thought, got guided = false")
        if self.linear_attention is not None:
            check_attention(self.linear_attention, self.wina, self.tokens + self.guided * self.thought_tokens)

    @property
    def across(self) -> int:
        """Patches along each side."""
        return self.side // self.patch

    @property
    def window(self) -> int:
        """[w] Pixels that a patch's token is told of: its own and those of the margin."""
        return (self.patch + 2 * self.margin) ** 2

    @property
    def tokens(self) -> int:
        """[P] Patches of an image."""
        return self.across**2

    @property
    def watches(self) -> bool:
        """Whether a thought is told of another one: that of the reverse step before."""
        return any(getattr(self, name) is not None for name in WATCHING)

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
        check_widths(self, core)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DiffusionConfig":
        """The inverse of `to_dict`; raises ValueError, as `from_plain` does."""
        return from_plain(cls, values, "diffusion")
