"""What the server must know of a diffusion model besides its program."""

from dataclasses import dataclass

from protos.ctm_bundle_pb2 import Manifest
from serving.diffusion.contract import IMAGE, LABEL, LEVEL
from serving.program import Program, TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DiffusionModel:
    """How its thoughts become an image."""

    image: TensorSpec
    fed_back: tuple[TensorSpec, ...]
    """Inputs, the image aside, that are what the reverse step before handed on; zeros at a row's first."""
    levels: int
    """Of noise; level 0 is the least."""
    steps: int
    """Reverse steps, unless a request says otherwise."""
    eta: float
    """0 deterministic, 1 ancestral, unless a request says otherwise."""
    num_classes: int
    classes: tuple[str, ...]
    """Their names, or none."""


def diffusion_model(manifest: Manifest, program: Program) -> DiffusionModel:
    """The diffusion part of a manifest that was checked."""
    inputs = {spec.name: spec for spec in program.inputs}
    last = inputs[LABEL].maximum
    assert last is not None, "the label of a checked manifest has a range"
    return DiffusionModel(
        image=inputs[IMAGE],
        fed_back=tuple(spec for spec in program.inputs if spec.name not in (IMAGE, LEVEL, LABEL)),
        levels=manifest.diffusion.levels,
        steps=manifest.diffusion.steps,
        eta=manifest.diffusion.eta,
        num_classes=int(last) + 1,
        classes=tuple(manifest.diffusion.classes),
    )
