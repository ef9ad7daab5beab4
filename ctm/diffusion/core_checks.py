"""Which settings of a diffusion model's core go together, refused by name where they do not."""

import torch

from ctm.config import CTMConfig
from ctm.diffusion.bidirectional import BidirectionalConfig
from ctm.diffusion.consciousness import ConsciousnessConfig
from ctm.diffusion.hierarchical import HierarchicalConfig
from ctm.diffusion.neuron_selection import SelectionConfig, select_by

_OUT_SYNC = {"hierarchical": "out sync is of its high level", "reasoning": "controller reads the out sync"}
"""Why the out sync keeps its pairs: a choice would be of other numbers, or a layer would read what it did not learn."""


def check_cores(
    *,
    hierarchical: HierarchicalConfig | None,
    reasoning: BidirectionalConfig | None,
    consciousness: ConsciousnessConfig | None,
    selection: SelectionConfig | None,
) -> None:
    """Raise ValueError, naming both sides, where settings exclude each other.

    Each of the first three makes another core of the plain one; consciousness couples the plain core's own ticks.
    """
    cores = {"hierarchical": hierarchical, "reasoning": reasoning, "consciousness": consciousness}
    chosen = [name for name, settings in cores.items() if settings is not None]
    if len(chosen) > 1:
        raise ValueError(f"diffusion.{chosen[0]} and diffusion.{chosen[1]} are two cores, got both")
    for name in chosen:
        if selection is not None and selection.where != "action" and name in _OUT_SYNC:
            raise ValueError(
                f"diffusion.selection.where must be 'action' with diffusion.{name}, whose {_OUT_SYNC[name]}, "
                f"got {selection.where!r}"
            )


def check_core_fits(
    core: CTMConfig,
    *,
    hierarchical: HierarchicalConfig | None,
    reasoning: BidirectionalConfig | None,
    selection: SelectionConfig | None,
) -> None:
    """Raise ValueError, naming both sides, unless a CTM of this configuration can be the core that is asked for."""
    if hierarchical is not None:
        hierarchical.check_core(core)
    if reasoning is not None and reasoning.max_moves != core.ticks:
        raise ValueError(
            f"diffusion.reasoning.max_moves must be model.ticks, {core.ticks}, as a move is a tick; "
            f"got {reasoning.max_moves}"
        )
    if selection is None:
        return
    if core.ticks < 2:
        raise ValueError(f"diffusion.selection needs model.ticks of at least 2, got {core.ticks}")
    try:
        select_by(core, torch.zeros(core.width), torch.Generator().manual_seed(0), selection.where)
    except ValueError as error:
        raise ValueError(f"diffusion.selection does not fit the model: {error}") from error
