"""What a manifest must say of a diffusion model: every part must fit the others."""

from protos.ctm_bundle_pb2 import Manifest, TensorSpec
from serving.ending import NEXT, abstaining, check_spec, given
from serving.mismatch import Mismatch, listing, quote
from serving.tensors import shape_text

CHAIN = "diffusion"
IMAGE, LEVEL, LABEL = "image", "level", "label"
NEXT_LEVEL, ETA, NOISE = "next_level", "eta", "noise"
ESTIMATE = "estimate"
CLEAN = -1
"""As a level: no noise at all."""

_MANIFEST = "manifest.json"


def check_diffusion(manifest: Manifest) -> None:
    """Refuse a chain of reverse steps that contradicts itself, and a finish that no chain has a use for.

    Raises:
        Mismatch: names both sides.
    """
    if manifest.HasField("diffusion") != (manifest.chain == CHAIN):
        got = f"chain {manifest.chain!r} and {'a' if manifest.HasField('diffusion') else 'no'} diffusion"
        raise Mismatch(f"{_MANIFEST}: chain and diffusion", got, f"both for chain {CHAIN!r}, else neither")
    if manifest.chain != CHAIN:
        if manifest.finish_inputs:
            got = f"a program with a finish, chain {manifest.chain!r}"
            raise Mismatch(f"{_MANIFEST}: finish_inputs", got, f"none: only chain {CHAIN!r} has a use for it")
        return
    _check_steps(manifest)
    image = _check_inputs(manifest)
    _check_classes(manifest)
    _check_given(manifest, image)
    _check_results(manifest, image)


def _check_steps(manifest: Manifest) -> None:
    diffusion = manifest.diffusion
    if diffusion.levels < 2:
        raise Mismatch(f"{_MANIFEST}: diffusion.levels", diffusion.levels, "at least 2")
    if not 1 <= diffusion.steps <= diffusion.levels:
        raise Mismatch(f"{_MANIFEST}: diffusion.steps", diffusion.steps, f"1 to levels, {diffusion.levels}")
    if not 0 <= diffusion.eta <= 1:
        raise Mismatch(f"{_MANIFEST}: diffusion.eta", diffusion.eta, "a number in [0, 1]")


def _check_inputs(manifest: Manifest) -> TensorSpec:
    """The input that is the noisy image."""
    inputs = {spec.name: spec for spec in manifest.inputs}
    if missing := [name for name in (IMAGE, LEVEL, LABEL) if name not in inputs]:
        raise Mismatch(f"{_MANIFEST}: inputs", listing(inputs), f"also {listing(missing)}")
    image, what = inputs[IMAGE], f"{_MANIFEST}: inputs {quote(IMAGE)}"
    if image.datatype != "FP32" or len(image.shape) != 2:
        raise Mismatch(what, f"{image.datatype} {shape_text(image.shape)}", "FP32 [height, width]")
    for name in (LEVEL, LABEL):
        check_spec(f"{_MANIFEST}: inputs {quote(name)}", inputs[name], "INT64", [])
    highest = manifest.diffusion.levels - 1
    _check_range(inputs[LEVEL], [0, highest], f"0 and {highest}: there are {highest + 1} levels")
    label = inputs[LABEL]
    if not label.HasField("maximum") or label.maximum < 0 or not label.maximum.is_integer():
        raise Mismatch(f"{_MANIFEST}: inputs {quote(LABEL)}, maximum", _bound(label, "maximum"), "the last class")
    _check_range(label, [0, label.maximum], f"0 and the last class, {label.maximum:g}")
    for spec in manifest.inputs:
        if spec.length_of or spec.buckets or spec.values:
            what = f"{_MANIFEST}: inputs {quote(spec.name)}"
            raise Mismatch(what, "length_of, buckets or values", "none: all of it counts, and may be any number")
    return image


def _check_range(spec: TensorSpec, expected: list[float], said: str) -> None:
    found = [_bound(spec, "minimum"), _bound(spec, "maximum")]
    if found != expected:
        raise Mismatch(f"{_MANIFEST}: inputs {quote(spec.name)}, minimum and maximum", listing(found), said)


def _bound(spec: TensorSpec, field: str) -> float | None:
    return getattr(spec, field) if spec.HasField(field) else None  # type: ignore[arg-type]  # one of two names


def _check_classes(manifest: Manifest) -> None:
    label = next(spec for spec in manifest.inputs if spec.name == LABEL)
    count, classes = int(label.maximum) + 1, list(manifest.diffusion.classes)
    if len(classes) not in (0, count):
        expected = f"{count}, one for each value of {quote(LABEL)}, or none"
        raise Mismatch(f"{_MANIFEST}: diffusion.classes", len(classes), expected)
    if len(set(classes)) != len(classes) or "" in classes:
        raise Mismatch(f"{_MANIFEST}: diffusion.classes", listing(classes), "each name once, none empty")


def _check_given(manifest: Manifest, image: TensorSpec) -> None:
    """What a reverse step is told besides what the thought saw and said."""
    abstaining(manifest)
    known = {NEXT_LEVEL: ("INT64", []), ETA: ("FP32", []), NOISE: ("FP32", list(image.shape))}
    found = {spec.name: spec for spec in given(manifest)}
    if set(found) != set(known):
        expected = f"{listing(known)}, beside inputs of the thought, outputs of its tick, and one of role ABSTAINED"
        raise Mismatch(f"{_MANIFEST}: finish_inputs", listing(found), expected)
    for name, (datatype, shape) in known.items():
        check_spec(f"{_MANIFEST}: finish_inputs {quote(name)}", found[name], datatype, shape)


def _check_results(manifest: Manifest, image: TensorSpec) -> None:
    results = {spec.name: spec for spec in manifest.finish_outputs}
    made_here = (LEVEL, LABEL)
    needed = [ESTIMATE, *(f"{NEXT}{spec.name}" for spec in manifest.inputs if spec.name not in made_here)]
    if missing := [name for name in needed if name not in results]:
        raise Mismatch(f"{_MANIFEST}: finish_outputs", listing(results), f"also {listing(missing)}")
    if spare := [name for name in made_here if f"{NEXT}{name}" in results]:
        raise Mismatch(f"{_MANIFEST}: finish_outputs", f"{NEXT}{spare[0]}", "none: the chain says it")
    check_spec(f"{_MANIFEST}: finish_outputs {quote(ESTIMATE)}", results[ESTIMATE], "FP32", image.shape)
