"""A bundle of a tiny CTM with random weights, through the real export: what the tests of serving serve."""

from pathlib import Path
from typing import Any

import torch

from ctm.config import CTMConfig
from ctm.hyper import LowRankChange
from ctm.model import CTM
from ctm.servable import servable
from export.build import Publication, build_bundle
from export.source import Source

TINY: dict[str, Any] = {
    "ticks": 8,
    "width": 16,
    "memory": 4,
    "attention_width": 8,
    "heads": 2,
    "out_neurons": 12,
    "action_neurons": 8,
    "out_dims": 10,
    "nlm_hidden": 4,
    "in_channels": 4,
    "input_shape": (4, 6),
}
SEED = 36
"""With it, and with the weights turned up as below, random rows stop at ticks 3 to 8 at the shipped threshold."""
THRESHOLD = 0.7


def tiny_model(**overrides: Any) -> CTM:
    """A CTM with weights from a fixed seed, turned up until its rows differ: fresh ones are never certain."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model = CTM(CTMConfig(**{**TINY, **overrides}), seed=SEED)
        for layer in model.neurons.layers:
            layer.weight.mul_(3.0)
            layer.bias.normal_(0.0, 0.3)
        model.attention.out.weight.mul_(2.0)
        model.readout.weight.mul_(12.0)
        model.start_post.normal_()
        model.start_trace.normal_(0.0, 0.3)
        for sync in (model.action_sync, model.out_sync):
            sync.decay.uniform_(0.0, 1.5)
        for module in model.modules():
            if isinstance(module, LowRankChange):
                # At the start it is zero, and all that it does would go unseen.
                module.left.weight.normal_(0.0, 0.1)
                module.left.bias.normal_(0.0, 0.1)
                module.right.bias.normal_(0.0, 0.1)
    return model.eval()


def tiny_inputs(model: CTM, rows: int, seed: int = 0) -> torch.Tensor:
    """Random rows for a model: signs for the parity backbone, else normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, *model.config.input_shape, generator=generator)
    return inputs.sign() if model.config.backbone == "parity" else inputs


def publish_tiny_bundle(store: Path, name: str = "tiny", **overrides: Any) -> Path:
    """Export a tiny CTM into the store, in about two seconds, and return its bundle's folder.

    Args:
        overrides: of the model's configuration, such as `energy_hidden=4`, or `out_dims=12, prediction_shape=(4, 3)`.
            `certainty_threshold`, `abstain_below`, `patience`, `energy_threshold`, `energy_delta` and `tick_cap`
            are the bundle's own.
    """
    defaults = {key: overrides.pop(key) for key in list(overrides) if key in Publication.__dataclass_fields__}
    model = tiny_model(**overrides)
    defaults = {"tick_cap": 2 * model.config.ticks, "certainty_threshold": THRESHOLD, **defaults}
    publication = Publication(**defaults, store=store, name=name)
    source = Source(
        model=model,
        servable=servable(model, "features"),
        task="random",
        labels=tuple(f"class {index}" for index in range(model.config.answer_shape[-1])),
        seed=SEED,
    )
    return build_bundle(source, publication, [tiny_inputs(model, 32)])
