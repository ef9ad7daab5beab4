"""What is counted of reverse steps, by how much noise they began with."""

from dataclasses import dataclass

from prometheus_client import Counter, Histogram

from serving.diffusion.chain import DiffusionChain
from serving.diffusion.contract import LEVEL
from serving.request import StopReason
from serving.scheduler import Ended

NOISE_RANGES = ("0-20%", "20-40%", "40-60%", "60-80%", "80-100%")
"""Of the levels of noise there are, the least first."""


@dataclass(frozen=True, slots=True)
class DiffusionSeries:
    """One model's."""

    finish: Histogram
    steps: list[Counter]
    """By range of noise."""
    base: list[Counter]

    def count(self, ended: Ended, chain: DiffusionChain) -> None:
        """Count the step at the end of a thought; one that came to nothing made none."""
        if not ended.answer_tick or ended.reason is StopReason.DIVERGED:
            return
        level = int(ended.thought.input(LEVEL)[0])
        place = int(chain.noise_share(level) * len(NOISE_RANGES))
        self.steps[place].inc()
        if ended.abstained:
            self.base[place].inc()
