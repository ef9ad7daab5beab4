"""The core that thinks in a diffusion model: plain, of two speeds, going back and forth, or more or less awake."""

from ctm.config import CTMConfig
from ctm.diffusion.config import DiffusionConfig
from ctm.diffusion.hierarchical import HierarchicalCTM
from ctm.diffusion.reasoning import ReasoningCTM
from ctm.diffusion.thinker import PlainThinker, Thinker
from ctm.diffusion.thinker_conscious import ConsciousThinker
from ctm.diffusion.thinker_hierarchical import HierarchicalThinker
from ctm.diffusion.thinker_reasoning import ReasoningThinker
from ctm.model import CTM


def build_thinker(core: CTMConfig, config: DiffusionConfig, *, seed: int | None) -> Thinker:
    """The core that is asked for; weights from torch's generator, pairs of neurons from the seed."""
    if config.hierarchical is not None:
        return HierarchicalThinker(HierarchicalCTM(core, config.hierarchical, seed=seed))
    plain = CTM(core, seed=seed)
    if config.reasoning is not None:
        return ReasoningThinker(ReasoningCTM(plain, config.reasoning))
    return PlainThinker(plain) if config.consciousness is None else ConsciousThinker(plain, config.consciousness)
