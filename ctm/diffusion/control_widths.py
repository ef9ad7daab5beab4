"""Whether the sizes of what watches other thoughts fit the model that it is switched on in."""

from typing import TYPE_CHECKING, Any

from ctm.config import CTMConfig

if TYPE_CHECKING:
    from ctm.diffusion.config import DiffusionConfig


def check_widths(diffusion: "DiffusionConfig", core: CTMConfig) -> None:
    """Raise ValueError, which names both sides, unless all sizes fit, and there are traces to be watched."""
    cores = [name for name in ("hierarchical", "reasoning", "consciousness") if getattr(diffusion, name) is not None]
    watching = [name for name in ("empathy", "emotion", "goal", "mirror") if getattr(diffusion, name) is not None]
    if cores and watching:
        raise ValueError(f"diffusion.{watching[0]} watches the traces of a plain core, got diffusion.{cores[0]} too")
    neurons = (core.width, "the neurons of model.width")
    goal = {
        "width": neurons,
        "context": (diffusion.width, "the level's code of diffusion.width"),
        "goals": (diffusion.classes, "the classes of diffusion.classes"),
        "kind": ("classes", "what an image can be asked for"),
    }
    _check("diffusion.empathy", diffusion.empathy, {"width": neurons})
    _check("diffusion.emotion", diffusion.emotion, {"width": neurons})
    _check("diffusion.goal", diffusion.goal, goal)
    if (mirror := diffusion.mirror) is not None:
        _check("diffusion.mirror", mirror, {"actions": (diffusion.side**2, "the pixels of diffusion.side squared")})
        _check("diffusion.mirror.emotion", mirror.emotion, {"width": neurons})
        _check("diffusion.mirror.goal", mirror.goal, goal)


def _check(where: str, part: object, expected: dict[str, tuple[Any, str]]) -> None:
    for name, (value, reason) in expected.items():
        if part is not None and getattr(part, name) != value:
            raise ValueError(f"{where}.{name} must be {value!r}, {reason}, got {getattr(part, name)!r}")
