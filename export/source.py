"""What is exported, and where it comes from: a checkpoint of ours, or a model that others trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ctm.model import CTM
from ctm.program import Program


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A model and what is known of it."""

    model: CTM
    program: Program
    task: str = ""
    """A word for people, such as "mnist"."""
    labels: tuple[str, ...] = ()
    input_range: tuple[float, float] | None = None
    """What values of the input mean anything; None: any."""
    command: str = ""
    """That trained the model."""
    seed: int = 0
    data: str = ""
    """What it was trained and measured on, in words."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what trained it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's config.json; empty for a model that others trained."""
