"""What is known so far of the images that a model draws: a row for each, a link for each of its reverse steps."""

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from serving.client import Answer, ChainEnd, Event, StopReason, Summary
from serving.request import Array
from serving.terminal.board import time_text

IMAGE = "image"
"""The output of a link that is what its reverse step left, [H, W], in [-1, 1] once the noise is out."""
ABSTAINED = "×"


@dataclass(slots=True)
class Row:
    """One image, on its way out of the noise."""

    name: str
    """Of its class."""
    links: list[Answer] = field(default_factory=list)
    final: Array | None = None
    """What it came to, as the summary has it."""

    @property
    def image(self) -> Array | None:
        """The latest that was sent."""
        return self.image_at(len(self.links)) if self.final is None else self.final

    def image_at(self, links: int) -> Array | None:
        """The latest that was sent with one of the first so many links."""
        sent = (link.outputs[IMAGE] for link in reversed(self.links[:links]) if IMAGE in link.outputs)
        return next(sent, None)

    @property
    def ticks(self) -> int:
        return sum(link.ticks_used for link in self.links)

    @property
    def abstentions(self) -> int:
        return sum(link.abstained for link in self.links)

    @property
    def ended(self) -> bool:
        return bool(self.links) and self.links[-1].chain_end != ChainEnd.GOES_ON

    @property
    def interrupted(self) -> bool:
        """Of a row that is over: whether steps are missing."""
        return not self.ended or self.links[-1].chain_end == ChainEnd.INTERRUPTED

    @property
    def diverged(self) -> bool:
        return bool(self.links) and self.links[-1].stop_reason == StopReason.DIVERGED


@dataclass(slots=True)
class Sheet:
    """All images of a request."""

    model: str
    """With its version, `digits-diffusion/1`."""
    threshold: float | None
    """At which certainty a thought stops; None when it is not what stops it."""
    abstain_below: float
    """Links less certain than this abstain; 0 when none does."""
    max_ticks: int
    """Of one thought."""
    steps: int
    size: tuple[int, int]
    """Height and width of an image in pixels."""
    rows: list[Row]
    began: float = field(default_factory=time.monotonic)
    """When it was asked."""
    seconds: float | None = None
    """From asking to the summary's arrival."""
    summary: Summary | None = None

    def record(self, event: Event, now: float) -> float:
        """Note what arrived; returns how long after asking."""
        seconds = now - self.began
        match event:
            case Answer():
                self.rows[event.row].links.append(event)
            case Summary():
                self.summary, self.seconds = event, seconds
                for row, image in zip(self.rows, event.outputs.get(IMAGE, ()), strict=False):
                    row.final = image
        return seconds

    def header(self) -> Text:
        """The model, and what decides over its thoughts."""
        parts = [f"{self.steps} steps"]
        if self.threshold is not None:
            parts.append(f"certain from {self.threshold:.2f}")
        if self.abstain_below > 0:
            parts.append(f"abstains ({ABSTAINED}) below {self.abstain_below:.2f}")
        return Text.assemble((self.model, "bold"), (f"  {', '.join(parts)}", "dim"))

    def last_line(self) -> str:
        """`2 images, 451 ticks, 11.3 a step, 3 of 40 steps abstained, seed 5, 1.20 s`; empty before the summary."""
        if self.summary is None:
            return ""
        links = sum(len(row.links) for row in self.rows)
        ticks, images = self.summary.ticks_used, len(self.rows)
        parts = [
            f"{images} image{'s' * (images != 1)}",
            f"{ticks} ticks, {ticks / max(links, 1):.1f} a step",
            f"{sum(self.summary.abstentions)} of {links} steps abstained",
        ]
        if self.summary.seed is not None:
            parts.append(f"seed {self.summary.seed}")
        if self.seconds is not None:
            parts.append(time_text(self.seconds))
        if any(row.interrupted for row in self.rows):
            parts.append("interrupted")
        return ", ".join(parts)


def brightness(image: Array) -> NDArray[np.float32]:
    """Pixels in [-1, 1] as brightness in [0, 1], for drawing; noise, which goes beyond, is cut off."""
    bright: NDArray[np.float32] = np.nan_to_num((image.astype(np.float32) + 1.0) / 2.0).clip(0.0, 1.0)
    return bright
