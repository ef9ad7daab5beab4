"""A bundle's manifest, read strictly: what is unknown, missing or contradictory is refused."""

import json
from collections import Counter
from collections.abc import Iterable
from math import inf, isnan, prod
from pathlib import Path

import numpy as np
from google.protobuf import json_format

from protos.ctm_bundle_pb2 import Manifest
from protos.ctm_bundle_pb2 import TensorSpec as SpecMessage
from serving.diffusion import contract as diffusion
from serving.diffusion.contract import check_diffusion
from serving.ending import abstaining, check_finish, given
from serving.mismatch import Mismatch, listing, quote
from serving.program import Finish, Program, TensorSpec
from serving.request import StopPolicy
from serving.tensors import DATATYPES, shape_text
from serving.text import contract as text
from serving.text.contract import check_text

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_CHAINS = (text.CHAIN, diffusion.CHAIN)
_MOST_TICKS = 1_000_000
_MOST_DIMENSIONS = 31  # of a row; a request may have 32, the rows included
_MOST_VALUES = 2**26  # of one tensor in one row: hundreds of times what the paper's largest models hold


def read(path: Path) -> Manifest:
    """Parse and check `manifest.json`.

    Raises:
        Mismatch: it is not JSON, has unknown fields, is of a newer format, or contradicts itself.
    """
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Mismatch(MANIFEST, quote(str(error)), "JSON") from error
    # Before anything else: fields of a newer format would be reported as mistakes.
    found = document.get("format_version", document.get("formatVersion")) if isinstance(document, dict) else None
    if found != FORMAT_VERSION:
        newer = isinstance(found, int) and found > FORMAT_VERSION
        advice = "; the bundle is newer than this server, upgrade it" if newer else ""
        raise Mismatch(f"{MANIFEST}: format_version", quote(found), f"{FORMAT_VERSION}{advice}")
    try:
        manifest = json_format.ParseDict(document, Manifest())
    except (json_format.ParseError, RecursionError, SystemError) as error:  # the last: a key that is no UTF-8
        raise Mismatch(MANIFEST, quote(str(error), 200), "the fields of a manifest") from error
    check(manifest)
    return manifest


def program(manifest: Manifest) -> Program:
    """The program that a checked manifest describes, but for its start values."""
    outputs = list(zip(manifest.outputs, _specs("outputs", manifest.outputs), strict=True))

    def of_role(role: SpecMessage.Role.ValueType) -> list[TensorSpec]:
        return [spec for message, spec in outputs if message.role == role]

    energy, done = of_role(SpecMessage.ENERGY), of_role(SpecMessage.DONE)
    return Program(
        inputs=_specs("inputs", manifest.inputs),
        context=_specs("context", manifest.context),
        state=_specs("state", manifest.state),
        start={},
        prediction=of_role(SpecMessage.PREDICTION)[0],
        certainty=of_role(SpecMessage.CERTAINTY)[0],
        energy=energy[0] if energy else None,
        done=done[0] if done else None,
        details=tuple(of_role(SpecMessage.DETAIL)),
        outputs=tuple(spec for _, spec in outputs),
        finish=_finish(manifest) if manifest.finish_inputs else None,
    )


def _finish(manifest: Manifest) -> Finish:
    return Finish(
        arguments=_specs("finish_inputs", manifest.finish_inputs),
        results=_specs("finish_outputs", manifest.finish_outputs),
        given=_specs("finish_inputs", given(manifest)),
        abstained=abstaining(manifest),
    )


def stop_defaults(manifest: Manifest) -> StopPolicy:
    """What a request's unset fields become. A rule that the bundle does not set never stops a thought."""
    stop = manifest.stop
    return StopPolicy(
        max_ticks=manifest.ticks,
        min_ticks=stop.min_ticks or 1,
        certainty_threshold=stop.certainty_threshold if stop.HasField("certainty_threshold") else inf,
        patience=stop.patience if stop.HasField("patience") else 1,
        energy_threshold=stop.energy_threshold if stop.HasField("energy_threshold") else -inf,
        energy_delta=stop.energy_delta,
    )


def _specs(field: str, messages: Iterable[SpecMessage]) -> tuple[TensorSpec, ...]:
    return tuple(tensor_spec(f"{MANIFEST}: {field} {quote(message.name)}", message) for message in messages)


def tensor_spec(what: str, message: SpecMessage) -> TensorSpec:
    """One tensor of a manifest.

    Args:
        what: it is called in the sentence of a refusal.

    Raises:
        Mismatch: no tensor is like that.
    """
    dtype = DATATYPES.get(message.datatype)
    if dtype is None:
        raise Mismatch(f"{what}, datatype", quote(message.datatype), f"one of {listing(DATATYPES)}")
    if any(size < 1 for size in message.shape):
        raise Mismatch(f"{what}, shape", shape_text(message.shape), "sizes of at least 1")
    if len(message.shape) > _MOST_DIMENSIONS or prod(message.shape) > _MOST_VALUES:
        allowed = f"at most {_MOST_VALUES} values a row, in at most {_MOST_DIMENSIONS} dimensions"
        raise Mismatch(f"{what}, shape", shape_text(message.shape), allowed)
    minimum = message.minimum if message.HasField("minimum") else None
    maximum = message.maximum if message.HasField("maximum") else None
    if dtype.kind == "f":  # as the datatype holds it: FP32's 0.1 is above 0.1
        with np.errstate(over="ignore"):
            minimum = None if minimum is None else float(dtype.type(minimum))
            maximum = None if maximum is None else float(dtype.type(maximum))
    low, high = -inf if minimum is None else minimum, inf if maximum is None else maximum
    if not low <= high:
        raise Mismatch(f"{what}, minimum and maximum", f"{low} and {high}", "minimum <= maximum")
    with np.errstate(over="ignore", invalid="ignore"):
        values = tuple(np.array(message.values).astype(dtype).tolist())  # as the datatype holds them, too
    return TensorSpec(
        message.name, dtype, tuple(message.shape), minimum, maximum, message.length_of, tuple(message.buckets), values
    )


def check(manifest: Manifest) -> None:
    """Refuse a manifest that contradicts itself.

    Raises:
        Mismatch: it does.
    """
    _check_tensors(manifest)
    _check_lengths(manifest)
    _check_roles(manifest)
    _check_ticks(manifest)
    _check_stop(manifest)
    if manifest.chain not in ("", *_CHAINS):
        raise Mismatch(f"{MANIFEST}: chain", quote(manifest.chain), f"{listing(_CHAINS)}, or none for single thoughts")
    check_finish(manifest)
    check_text(manifest)
    check_diffusion(manifest)
    functions = {"encode", "tick", "finish"} if manifest.finish_inputs else {"encode", "tick"}
    kinds = [artefact.backend for artefact in manifest.artefacts]
    if not kinds or len(set(kinds)) != len(kinds):
        raise Mismatch(f"{MANIFEST}: artefacts", listing(kinds), "at least one, each backend once")
    for artefact in manifest.artefacts:
        if set(artefact.graphs) != functions:
            what = f"{MANIFEST}: artefact {quote(artefact.backend)}, graphs"
            raise Mismatch(what, listing(sorted(artefact.graphs)), listing(sorted(functions)))


def _check_tensors(manifest: Manifest) -> None:
    fields = {"inputs": manifest.inputs, "context": manifest.context, "state": manifest.state}
    for field, messages in {**fields, "outputs": manifest.outputs}.items():
        if not messages:
            raise Mismatch(f"{MANIFEST}: {field}", "none", "at least one tensor")
        _specs(field, messages)
    _specs("finish_inputs", manifest.finish_inputs)
    _specs("finish_outputs", manifest.finish_outputs)
    arguments = [spec.name for spec in (*manifest.context, *manifest.state)]
    results = [f"next_{spec.name}" for spec in manifest.state] + [spec.name for spec in manifest.outputs]
    for field, names in {
        "inputs": [spec.name for spec in manifest.inputs],
        "context and state": arguments,
        "state and outputs": results,
    }.items():
        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated or "" in names:
            raise Mismatch(f"{MANIFEST}: names of {field}", quote((repeated or [""])[0]), "each once, none empty")


def _check_lengths(manifest: Manifest) -> None:
    """Inputs that say how much of another one counts, and the sizes that those may be cut to."""
    inputs = {spec.name: spec for spec in manifest.inputs}
    lengths = {spec.length_of: spec for spec in manifest.inputs if spec.length_of}
    if len(lengths) != sum(1 for spec in manifest.inputs if spec.length_of):
        raise Mismatch(f"{MANIFEST}: inputs", "two lengths of one input", "one at most")
    for name, length in lengths.items():
        what, measured = f"{MANIFEST}: inputs {quote(length.name)}", inputs.get(name)
        if measured is None or not measured.shape or measured is length:
            raise Mismatch(f"{what}, length_of", quote(name), f"another input with a dimension, of {listing(inputs)}")
        size = measured.shape[0]
        if (length.datatype, list(length.shape)) != ("INT64", []):
            raise Mismatch(what, f"{length.datatype} {shape_text(length.shape)}", "INT64 []: a length")
        bounds = [length.minimum if length.HasField("minimum") else None, length.maximum]
        if bounds != [1, size]:
            expected = f"1 and {size}, the size of {quote(name)}"
            raise Mismatch(f"{what}, minimum and maximum", listing(bounds), expected)
    for spec in manifest.inputs:
        _check_buckets(spec, has_length=spec.name in lengths)
    for spec in (*manifest.context, *manifest.state, *manifest.outputs):
        if spec.length_of or spec.buckets:
            raise Mismatch(f"{MANIFEST}: {quote(spec.name)}", "length_of or buckets", "none: inputs alone have them")


def _check_buckets(spec: SpecMessage, *, has_length: bool) -> None:
    what, sizes = f"{MANIFEST}: inputs {quote(spec.name)}, buckets", list(spec.buckets)
    if not sizes:
        return
    if not has_length:
        raise Mismatch(what, listing(sizes), f"none: no input has length_of {quote(spec.name)}")
    if sizes != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] != spec.shape[0]:
        raise Mismatch(what, listing(sizes), f"sizes that rise from at least 1 to {spec.shape[0]}")


def _check_roles(manifest: Manifest) -> None:
    for role, allowed in {"PREDICTION": (1,), "CERTAINTY": (1,), "ENERGY": (0, 1), "DONE": (0, 1)}.items():
        found = [spec for spec in manifest.outputs if spec.role == SpecMessage.Role.Value(role)]
        if len(found) not in allowed:
            what = f"{MANIFEST}: outputs of role {role}"
            raise Mismatch(what, listing([spec.name for spec in found]), "one" if 0 not in allowed else "at most one")
        for spec in found:
            what = f"{MANIFEST}: outputs {quote(spec.name)}"
            if role != "PREDICTION" and len(spec.shape):
                raise Mismatch(f"{what}, shape", list(spec.shape), f"[]: one {role.lower()} a row")
            if role == "PREDICTION" and not spec.datatype.startswith("FP"):
                raise Mismatch(f"{what}, datatype", spec.datatype, "FP16, FP32 or FP64")
            if role in ("CERTAINTY", "ENERGY") and spec.datatype != "FP32":
                raise Mismatch(f"{what}, datatype", spec.datatype, "FP32")
    known = set(SpecMessage.Role.values()) - {SpecMessage.ROLE_UNSPECIFIED, SpecMessage.ABSTAINED}
    read = {spec.name for spec in manifest.finish_inputs}
    for spec in manifest.outputs:
        if spec.role not in known and not (spec.role == SpecMessage.ROLE_UNSPECIFIED and spec.name in read):
            raise Mismatch(f"{MANIFEST}: outputs {quote(spec.name)}, role", spec.role, "one of TensorSpec.Role")


def _check_ticks(manifest: Manifest) -> None:
    if not 1 <= manifest.tick_cap <= _MOST_TICKS:
        raise Mismatch(f"{MANIFEST}: tick_cap", manifest.tick_cap, f"1 to {_MOST_TICKS}")
    if not 1 <= manifest.ticks <= manifest.tick_cap:
        raise Mismatch(f"{MANIFEST}: ticks", manifest.ticks, f"1 to tick_cap, {manifest.tick_cap}")
    prediction = _prediction(manifest)
    classes = prediction.shape[-1] if prediction.shape else 0
    if len(manifest.labels) not in (0, classes):
        raise Mismatch(f"{MANIFEST}: labels", len(manifest.labels), f"{classes}, one for each class, or none")


def _check_stop(manifest: Manifest) -> None:
    stop = manifest.stop
    for field in ("certainty_threshold", "abstain_below"):
        if not 0.0 <= getattr(stop, field) <= 1.0:
            raise Mismatch(f"{MANIFEST}: stop.{field}", getattr(stop, field), "a certainty in [0, 1]")
    if stop.min_ticks > manifest.ticks:
        raise Mismatch(f"{MANIFEST}: stop.min_ticks", stop.min_ticks, f"at most ticks, {manifest.ticks}")
    if stop.patience > 1 and not _prediction(manifest).shape:
        raise Mismatch(f"{MANIFEST}: stop.patience", stop.patience, "none: the prediction has no classes")
    if stop.HasField("patience") and not 1 <= stop.patience <= manifest.tick_cap:
        raise Mismatch(f"{MANIFEST}: stop.patience", stop.patience, f"1 to tick_cap, {manifest.tick_cap}")
    asks_energy = stop.HasField("energy_threshold") or stop.HasField("energy_delta")
    if asks_energy and not any(spec.role == SpecMessage.ENERGY for spec in manifest.outputs):
        raise Mismatch(f"{MANIFEST}: stop", "an energy rule", "none: the model has no energy head")
    if isnan(stop.energy_threshold) or not stop.energy_delta >= 0:
        got = f"{stop.energy_threshold} and {stop.energy_delta}"
        raise Mismatch(f"{MANIFEST}: stop.energy_threshold and energy_delta", got, "numbers, the delta at least 0")


def _prediction(manifest: Manifest) -> SpecMessage:
    return next(spec for spec in manifest.outputs if spec.role == SpecMessage.PREDICTION)
