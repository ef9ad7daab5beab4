"""What a Continuous Thought Machine is made of: one frozen configuration that cannot be wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any, Literal, get_args

Selection = Literal["first-last", "random", "random-pairing"]
SELECTIONS: tuple[str, ...] = get_args(Selection)

RESNETS = tuple(f"resnet{layers}-{stages}" for layers in (18, 34, 50, 101, 152) for stages in (1, 2, 3, 4))
BACKBONES = (*RESNETS, "shallow-wide", "digit", "lattice", "parity", "none")

PLANE_POSITIONALS = ("learnable-fourier", "multi-learnable-fourier", "custom-rotational")
LINE_POSITIONALS = ("custom-rotational-1d",)
POSITIONALS = ("none", *PLANE_POSITIONALS, *LINE_POSITIONALS)

HyperLayers = Literal["none", "bottleneck", "down", "up", "all"]
HYPER_LAYERS: tuple[str, ...] = get_args(HyperLayers)

_COUNTS = ("ticks", "width", "memory", "attention_width", "heads", "out_neurons", "action_neurons", "out_dims")
_MORE_COUNTS = ("synapse_depth", "nlm_hidden", "in_channels", "hyper_rank")
_MAYBE_COUNTS = ("energy_hidden", "hyper_nlm_rank")
_TRUTHS = ("nlm_deep", "nlm_layernorm", "hyper_gate")

_LARGEST = 3.4e38
"""What float32 holds; beyond it are infinities."""
_SMALLEST_STD = 1e-30
"""Less is nothing to float32, and dividing by it infinite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CTMConfig:
    """Sizes and choices of one CTM (paper: arXiv 2505.05522).

    The letters in brackets are the ones used in shapes throughout `ctm`.
    """

    ticks: int
    """[T] Ticks of one thought. No weight depends on it."""

    width: int
    """[D] Neurons."""

    memory: int
    """[M] Pre-activations that a neuron sees: the length of its trace."""

    attention_width: int
    """[I] Width of the tokens a thought attends to, and of what attention returns."""

    heads: int
    """[h] Attention heads; divides `attention_width`."""

    out_neurons: int
    """Neurons selected for the out sync, which makes the prediction."""

    action_neurons: int
    """Neurons selected for the action sync, which makes the attention query."""

    out_dims: int
    """[C] Numbers in one prediction."""

    prediction_shape: tuple[int, ...] = ()
    """How a prediction is read, e.g. (39, 5): 39 positions of 5 classes. Empty means (out_dims,)."""

    neuron_selection: Selection = "random-pairing"
    """`random-pairing`: n drawn pairs. The others pair each of n neurons with each, n(n+1)/2 pairs:
    `first-last` takes the first neurons for out and the last for action, `random` draws left and right apart."""

    self_pairs: int = 0
    """How many of the drawn pairs are a neuron with itself (`random-pairing` only)."""

    synapse_depth: int = 1
    """1: one gated linear layer. k > 1: a U-Net over k widths, from `width` down to 16."""

    nlm_deep: bool = True
    """Whether neuron-level models have a hidden layer."""

    nlm_hidden: int = 16
    """[H] Width of that hidden layer."""

    nlm_layernorm: bool = False
    """Whether each neuron-level layer normalises its input."""

    backbone: str = "none"
    """What turns an input into features: one of `BACKBONES`."""

    positional: str = "none"
    """What is added to the features of each position: one of `POSITIONALS`."""

    in_channels: int = 1
    """Channels of the image; with backbone `none`, of the features given. Unused by `parity`."""

    input_shape: tuple[int, ...] = ()
    """Shape of one input row, channels first, e.g. (1, 28, 28); (length,) for `parity`. Empty when unknown; export
    needs it."""

    input_mean: tuple[float, ...] = ()
    """Per channel (or one for all): subtracted from the input first thing in `encode`. Empty: nothing is."""

    input_std: tuple[float, ...] = ()
    """Per channel (or one for all): divides the input after the mean."""

    dropout: float = 0.0
    """Before each linear layer of the synapse model, and on attention weights."""

    nlm_dropout: float | None = None
    """On the input of each neuron-level layer; None means the same as `dropout`."""

    energy_hidden: int | None = None
    """Hidden width of the energy head; None means no head."""

    hyper_layers: HyperLayers | tuple[int, ...] = "none"
    """Which of the U-Net's linear layers change while thinking: `bottleneck` are the narrowest, down and up; `down` and
    `up` are all of one way; numbers name levels, both ways, from 0, the widest, to `synapse_depth` - 2."""

    hyper_rank: int = 8
    """Rank of those changes."""

    hyper_nlm_rank: int | None = None
    """Rank of the change of the last neuron-level layer, the same for all neurons; None means that none changes."""

    hyper_gate: bool = False
    """Whether each change is scaled by a gate of its own, learned and made anew at every tick."""

    def __post_init__(self) -> None:
        for name in _COUNTS + _MORE_COUNTS:
            _check_count(name, getattr(self, name))
        for name in _MAYBE_COUNTS:
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        if isinstance(self.self_pairs, bool) or not isinstance(self.self_pairs, int) or self.self_pairs < 0:
            raise ValueError(f"self_pairs must be a whole number of at least 0, got {self.self_pairs!r}")
        for name in _TRUTHS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.attention_width % self.heads:
            raise ValueError(f"heads must divide attention_width {self.attention_width}, got {self.heads}")
        for name in ("dropout", "nlm_dropout"):
            rate = getattr(self, name)
            if rate is None and name == "nlm_dropout":
                continue
            if not _is_number(rate) or not 0 <= rate < 1:
                raise ValueError(f"{name} must be a number in [0, 1), got {rate!r}")
        for name in ("prediction_shape", "input_shape", "input_mean", "input_std"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)):
                raise ValueError(f"{name} must be a list, got {values!r}")
            object.__setattr__(self, name, tuple(values))  # The only way in while we are being made.
        self._check_neurons()
        self._check_prediction()
        self._check_input()
        self._check_hyper()

    def _check_neurons(self) -> None:
        _check_choice("neuron_selection", self.neuron_selection, SELECTIONS)
        if self.neuron_selection == "first-last" and self.out_neurons + self.action_neurons > self.width:
            raise ValueError(
                f"first-last needs width of at least out_neurons + action_neurons = "
                f"{self.out_neurons} + {self.action_neurons}, got width {self.width}"
            )
        if self.neuron_selection != "random-pairing" and self.self_pairs:
            raise ValueError(f"self_pairs is for random-pairing, got {self.self_pairs} with {self.neuron_selection}")
        fewest = min(self.out_neurons, self.action_neurons)
        if self.self_pairs and self.self_pairs >= fewest:
            raise ValueError(f"self_pairs must be fewer than the {fewest} pairs of a sync, got {self.self_pairs}")

    def _check_prediction(self) -> None:
        shape = self.answer_shape
        for size in shape:
            _check_count("each size in prediction_shape", size)
        if prod(shape) != self.out_dims:
            raise ValueError(f"prediction_shape must hold out_dims = {self.out_dims} numbers, got {shape}")
        if shape[-1] < 2:
            raise ValueError(f"certainty needs at least 2 classes in the last size of {shape}, got {shape[-1]}")

    def _check_input(self) -> None:
        _check_choice("backbone", self.backbone, BACKBONES)
        _check_choice("positional", self.positional, POSITIONALS)
        allowed = positionals_of(self.backbone)
        if self.positional not in allowed:
            raise ValueError(f"positional for backbone {self.backbone} must be one of {allowed}, got {self.positional}")
        self._check_input_shape()
        self._check_normalisation()

    def _check_input_shape(self) -> None:
        for size in self.input_shape:
            _check_count("each size in input_shape", size)
        channels, axes = self.in_channels, len(self.input_shape)
        if self.backbone == "parity":
            form, fits = "(length,)", axes == 1
        elif self.backbone == "none":
            form, fits = f"({channels}, ...), channels first", axes > 1 and self.input_shape[0] == channels
        else:
            form, fits = f"({channels}, height, width)", axes == 3 and self.input_shape[0] == channels
        if self.input_shape and not fits:
            raise ValueError(f"input_shape for backbone {self.backbone} must be {form}, got {self.input_shape}")

    def _check_normalisation(self) -> None:
        for name in ("input_mean", "input_std"):
            values = getattr(self, name)
            if not all(map(_is_number, values)):
                raise ValueError(f"{name} must be numbers, got {values}")
            if not all(abs(value) <= _LARGEST for value in values):
                raise ValueError(f"{name} must be finite in float32, got {values}")
        if any(not std >= _SMALLEST_STD for std in self.input_std):
            raise ValueError(f"input_std must be positive, at least {_SMALLEST_STD}, got {self.input_std}")
        if len(self.input_mean) != len(self.input_std):
            raise ValueError(
                f"input_mean and input_std must be equally long, got {self.input_mean} and {self.input_std}"
            )
        if self.input_mean and self.backbone == "parity":
            raise ValueError("backbone parity reads signs, not channels: input_mean and input_std must be empty")
        if self.input_mean and len(self.input_mean) not in (1, self.in_channels):
            raise ValueError(
                f"input_mean must have 1 or in_channels = {self.in_channels} values, got {self.input_mean}"
            )

    def _check_hyper(self) -> None:
        layers, depth = self.hyper_layers, self.synapse_depth
        if layers not in HYPER_LAYERS and (isinstance(layers, str) or not isinstance(layers, (tuple, list))):
            raise ValueError(f"hyper_layers must be one of {HYPER_LAYERS} or a list of levels, got {layers!r}")
        if layers != "none" and depth == 1:
            raise ValueError(f"hyper_layers need a U-Net, synapse_depth of at least 2, got {layers!r} with depth 1")
        if not isinstance(layers, str):
            if not layers or not all(type(level) is int and 0 <= level < depth - 1 for level in layers):
                raise ValueError(f"hyper_layers must be levels from 0 to synapse_depth - 2 = {depth - 2}, got {layers}")
            if len(set(layers)) < len(layers):
                raise ValueError(f"hyper_layers must name each level once, got {layers}")
            object.__setattr__(self, "hyper_layers", tuple(layers))
        if self.hyper_gate and not self.hyper:
            raise ValueError("hyper_gate scales changes: it needs hyper_layers or hyper_nlm_rank, got neither")

    @property
    def hyper(self) -> bool:
        """Whether any weight changes while thinking."""
        return self.hyper_layers != "none" or self.hyper_nlm_rank is not None

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """`prediction_shape` with its default filled in: positions first, classes last."""
        return self.prediction_shape or (self.out_dims,)

    @property
    def out_pairs(self) -> int:
        """[O] Pairs in the out sync."""
        return self._pairs(self.out_neurons)

    @property
    def action_pairs(self) -> int:
        """[A] Pairs in the action sync."""
        return self._pairs(self.action_neurons)

    def _pairs(self, neurons: int) -> int:
        return neurons if self.neuron_selection == "random-pairing" else neurons * (neurons + 1) // 2

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON can hold it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CTMConfig":
        """The configuration that `to_dict` wrote; ValueError names any key that is unknown or missing."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown CTM settings {unknown}, allowed are {sorted(known)}")
        if missing := sorted(set(_COUNTS) - values.keys()):
            raise ValueError(f"missing CTM settings {missing}")
        return cls(**values)


def positionals_of(backbone: str) -> tuple[str, ...]:
    """Positional embeddings that fit the features of a backbone: a line, a plane, or whatever was given."""
    if backbone == "none":
        return ("none",)
    return ("none", *LINE_POSITIONALS) if backbone == "parity" else ("none", *PLANE_POSITIONALS)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
