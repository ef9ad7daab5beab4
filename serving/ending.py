"""What a manifest must say of a program's finish: where arguments come from, which inputs results become."""

from collections import Counter
from collections.abc import Sequence

from protos.ctm_bundle_pb2 import Manifest
from protos.ctm_bundle_pb2 import TensorSpec as SpecMessage
from serving.mismatch import Mismatch, listing, quote
from serving.tensors import shape_text

NEXT = "next_"
"""A result of this name and an input's is that input of the row's next thought."""

_MANIFEST = "manifest.json"


def check_finish(manifest: Manifest) -> None:
    """Refuse a finish that does not fit its program.

    Raises:
        Mismatch: names both sides.
    """
    if bool(manifest.finish_inputs) != bool(manifest.finish_outputs):
        counts = f"{len(manifest.finish_inputs)} and {len(manifest.finish_outputs)} tensors"
        raise Mismatch(f"{_MANIFEST}: finish_inputs and finish_outputs", counts, "both, or neither")
    _check_names("finish_inputs", manifest.finish_inputs)
    _check_names("finish_outputs", manifest.finish_outputs)
    inputs = {spec.name: spec for spec in manifest.inputs}
    outputs = {spec.name: spec for spec in manifest.outputs}
    for spec in manifest.finish_inputs:
        what = f"{_MANIFEST}: finish_inputs {quote(spec.name)}"
        if spec.name in inputs and spec.name in outputs:
            raise Mismatch(what, "an input and an output of the tick", "one of them")
        if spec.role == SpecMessage.ABSTAINED:
            check_spec(what, spec, "BOOL", [])
        elif (source := inputs.get(spec.name) or outputs.get(spec.name)) is not None:
            check_spec(what, spec, source.datatype, source.shape)
    for spec in manifest.finish_outputs:
        name = spec.name.removeprefix(NEXT)
        if spec.name.startswith(NEXT) and name not in inputs:
            raise Mismatch(f"{_MANIFEST}: finish_outputs", quote(spec.name), f"{NEXT} and one of {listing(inputs)}")
        if spec.name.startswith(NEXT):
            expected = inputs[name]
            check_spec(f"{_MANIFEST}: finish_outputs {quote(spec.name)}", spec, expected.datatype, expected.shape)


def abstaining(manifest: Manifest) -> str:
    """The argument of finish that says whether a row abstained.

    Raises:
        Mismatch: there is not exactly one.
    """
    found = [spec.name for spec in manifest.finish_inputs if spec.role == SpecMessage.ABSTAINED]
    if len(found) != 1:
        raise Mismatch(f"{_MANIFEST}: finish_inputs of role ABSTAINED", listing(found), "one")
    return found[0]


def given(manifest: Manifest) -> list[SpecMessage]:
    """The arguments of finish that whoever makes the links gives along with the inputs."""
    known = {spec.name for spec in (*manifest.inputs, *manifest.outputs)}
    return [spec for spec in manifest.finish_inputs if spec.role != SpecMessage.ABSTAINED and spec.name not in known]


def check_spec(what: str, spec: SpecMessage, datatype: str, shape: Sequence[int]) -> None:
    """Refuse a tensor of another datatype or shape; `what` names it."""
    if (spec.datatype, list(spec.shape)) != (datatype, list(shape)):
        got = f"{spec.datatype} {shape_text(spec.shape)}"
        raise Mismatch(what, got, f"{datatype} {shape_text(shape)}")


def _check_names(field: str, messages: Sequence[SpecMessage]) -> None:
    counts = Counter(spec.name for spec in messages)
    if repeated := [name for name, count in counts.items() if count > 1 or not name]:
        raise Mismatch(f"{_MANIFEST}: names of {field}", quote(repeated[0]), "each once, none empty")
