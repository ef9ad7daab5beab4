"""A language model that thinks: GPT-2 reads, a CTM thinks about what to write next; what is the reader's is here."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ctm.config import CTMConfig

_COUNTS = ("vocabulary", "context", "layers", "width", "heads")


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageConfig:
    """The GPT-2 in front of a CTM, and how the two are put together.

    The letters in brackets are the ones used in shapes throughout `ctm.language`.
    """

    vocabulary: int
    """[V] Tokens."""

    context: int
    """[W] Tokens that are read at most."""

    layers: int = 2
    width: int = 128
    """[E] Width of GPT-2's features."""

    heads: int = 4
    """Of GPT-2; divides `width`."""

    dropout: float = 0.0
    """Of GPT-2."""

    gpt2: str = ""
    """Folder or repository id of a GPT-2 to begin with; empty draws a new one of these sizes."""

    frozen: bool = False
    """Whether GPT-2 stays as it is; its logits still take part."""

    alone: bool = False
    """GPT-2 without a CTM: what a CTM has to be better than. It thinks for one tick."""

    skip_weight: float = 0.2
    """Where the learned weight of the thought begins: alpha = sigmoid(skip weight) of the logits are the thought's."""

    final_only: bool = False
    """Learn from the last tick alone, and read no other while training: the thriftiest. Otherwise from the best and the
    most certain tick of each token, as the paper does."""

    any_tick: float = 0.0
    """Share of the loss that falls on one tick of each token drawn at random, so that every tick learns to predict:
    what makes early ones worth stopping at. In [0, 1]."""

    checkpoint_ticks: bool = False
    """Compute ticks again on the way back rather than keep what they computed: memory against time."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"language.{name} must be a whole number of at least 1, got {value!r}")
        if self.vocabulary < 2:
            raise ValueError(f"language.vocabulary must be at least 2, got {self.vocabulary}")
        if self.width % self.heads:
            raise ValueError(f"language.heads must divide language.width {self.width}, got {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"language.dropout must be a number in [0, 1), got {self.dropout!r}")
        if not 0 <= self.any_tick <= 1:
            raise ValueError(f"language.any_tick must be a share in [0, 1], got {self.any_tick!r}")
        if self.any_tick and self.final_only:
            raise ValueError(f"language.final_only reads no other tick, got language.any_tick = {self.any_tick}")
        if self.frozen and not self.gpt2:
            raise ValueError("language.frozen keeps a GPT-2 as it is: language.gpt2 must say which, got none")
        if self.frozen and self.alone:
            raise ValueError("language.frozen and language.alone leave nothing to learn")

    def check_core(self, core: CTMConfig) -> None:
        """Raise ValueError, naming both sides, unless the CTM thinks about this GPT-2's features."""
        wanted: dict[str, Any] = {
            "backbone": "none",
            "in_channels": self.width,
            "input_shape": (self.width, self.context),
            "out_dims": self.width,
            "prediction_shape": (),
            "energy_hidden": None,
        }
        for name, value in wanted.items():
            if (found := getattr(core, name)) != value:
                raise ValueError(
                    f"a CTM over GPT-2 features of width {self.width} and {self.context} tokens needs "
                    f"model.{name} = {_shown(value)}, got {_shown(found)}"
                )
        if self.alone and core.ticks != 1:
            raise ValueError(f"language.alone thinks for one tick, got model.ticks = {core.ticks}")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON can hold it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LanguageConfig":
        """The configuration that `to_dict` wrote; ValueError names any key that is unknown or missing."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown language settings {unknown}, allowed are {sorted(known)}")
        if missing := sorted({"vocabulary", "context"} - values.keys()):
            raise ValueError(f"missing language settings {missing}")
        return cls(**values)


def _shown(value: object) -> object:
    """As TOML would have it."""
    if value is None:
        return "unset"
    return list(value) if isinstance(value, tuple) else value
