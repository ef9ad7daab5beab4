"""A bundle of a tiny diffusion model with random weights, through the real export: what the tests of serving serve."""

from pathlib import Path
from typing import Any

import torch
from small_diffusion import small_model

from ctm.diffusion.model import EnhancedCTMDiffusion
from ctm.servable import servable
from export.build import Publication, build_bundle
from export.source import Source, random_inputs

SEED = 0
THRESHOLD, ABSTAIN_BELOW = 0.4, 0.2
"""With them, and with the weights turned up as below, some thoughts stop early and some abstain."""
CLASSES = ("none", "one", "two", "three")


def tiny_diffusion(**settings: Any) -> EnhancedCTMDiffusion:
    """A diffusion model with weights from a fixed seed, its CTM's turned up until thoughts are certain and differ.

    Args:
        settings: of its `DiffusionConfig`, such as `target="velocity"`.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = small_model(SEED, **settings)
        assert model.thinker is not None, "the model thinks"
        core = model.thinker.core
        core.attention.out.weight.mul_(5.0)
        core.readout.weight.mul_(5.0)
    return model


def write_diffusion_bundle(store: Path, name: str = "tiny-diffusion", **overrides: Any) -> Path:
    """Export a tiny diffusion model into the store, in a few seconds, and return its bundle's folder.

    Args:
        overrides: of the model's `DiffusionConfig`. Those that `Publication` knows are the bundle's own: `steps`,
            `eta`, `certainty_threshold`, `abstain_below`, `tick_cap`, `only_onnx`, ….
    """
    defaults = {key: overrides.pop(key) for key in list(overrides) if key in Publication.__dataclass_fields__}
    model = tiny_diffusion(**overrides)
    form = servable(model)
    shipped = {"certainty_threshold": THRESHOLD, "abstain_below": ABSTAIN_BELOW, "steps": 6}
    publication = Publication(
        **{"tick_cap": 2 * form.config.ticks, **shipped, **defaults, "store": store, "name": name}
    )
    source = Source(model=model, servable=form, family="diffusion", task="random", classes=CLASSES, seed=SEED)
    return build_bundle(source, publication, random_inputs(source, 32))
