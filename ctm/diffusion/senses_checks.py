"""What the parts that read images must be to fit the pixels and the tokens of one diffusion model."""

from ctm.diffusion.granularity import GranularityConfig
from ctm.diffusion.jepa import JEPAConfig
from ctm.diffusion.patches import PatcherConfig
from ctm.diffusion.tracker import TrackerConfig


def check_senses(
    *,
    side: int,
    patch: int,
    width: int,
    tracker: TrackerConfig | None,
    granularity: GranularityConfig | None,
    patcher: PatcherConfig | None,
    dynamic: PatcherConfig | None,
    jepa: JEPAConfig | None,
) -> None:
    """Raise ValueError, with both sides, unless what is switched on fits."""
    for name, part in (("granularity", granularity), ("patcher", patcher), ("dynamic", dynamic)):
        if part is None:
            continue
        if part.length != side**2:
            raise ValueError(
                f"diffusion.{name}.length must be the {side**2} pixels of {side} x {side}, a byte each, "
                f"got {part.length}"
            )
        if part.width != width:
            raise ValueError(f"diffusion.{name}.width must be diffusion.width {width}, got {part.width}")
    if tracker is not None and tracker.channels != width:
        raise ValueError(f"diffusion.tracker.channels must be diffusion.width {width}, got {tracker.channels}")
    if jepa is not None and side == patch:
        raise ValueError(f"diffusion.jepa needs at least 2 patches, got patch {patch} of side {side}")
