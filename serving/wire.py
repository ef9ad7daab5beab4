"""Messages to requests, events to messages: pure functions between the protocol and the engine.

    ThinkRequest --parse_request--> Request --> engine --> Event --event_message, ticks_message--> ThinkEvent

Nothing a caller sends is trusted, and nothing is allocated before its size is known to be right.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import isfinite
from secrets import randbits
from typing import TYPE_CHECKING

import numpy as np

from protos import ctm_serving_pb2 as pb
from serving.bundle import Bundle
from serving.chain import Chain
from serving.diffusion.chain import DiffusionChain
from serving.diffusion.labels import labels
from serving.diffusion.options import diffusion_options
from serving.errors import InvalidRequest, QueueFull, ServingError
from serving.events import Answer, Event, Failure, Leading, Summary, Tick
from serving.mismatch import Mismatch, listing, quote
from serving.policy import answer_rule, certainty, check_chain, stop_policy, stream_policy
from serving.program import TensorSpec
from serving.request import Array, Request, StopPolicy, StreamPolicy
from serving.status import code
from serving.tensors import array, datatype, fill, shape_text
from serving.text.chain import TextChain
from serving.text.options import text_options
from serving.text.prompt import prompts

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

LONGEST_ID = 256
"""Characters of a request id: it stands in every event."""

_LONGEST_POLICY = 16_384
"""Bytes of what a request says of stopping and streaming: all of it may well be in a few hundred."""

_MOST_POLICIES = 256
"""Remembered for each bundle."""

_SEED_BITS = 32
"""Of a seed that we draw: few enough to be read out and typed in."""


def parse_request(
    message: pb.ThinkRequest, bundle: Bundle, *, max_rows: int, max_links: int, arrival: float, call_deadline: float
) -> Request:
    """What the engine needs to know, with the bundle's defaults filled in.

    Args:
        max_rows: of one request.
        max_links: of one row's chain.
        arrival, call_deadline: monotonic seconds; a call without a deadline has `inf`.

    Raises:
        InvalidRequest: the message contradicts itself, the model or a limit; says what, what was met, what is expected.
    """
    try:
        return _parse(message, bundle, max_rows, max_links, arrival, call_deadline)
    except Mismatch as error:
        raise InvalidRequest(str(error)) from error


def _parse(
    message: pb.ThinkRequest, bundle: Bundle, max_rows: int, max_links: int, arrival: float, call_deadline: float
) -> Request:
    if len(message.request_id) > LONGEST_ID:
        raise Mismatch("request_id", f"{len(message.request_id)} characters", f"at most {LONGEST_ID}")
    if message.HasField("timeout_seconds"):
        if not message.timeout_seconds > 0:
            raise Mismatch("timeout_seconds", message.timeout_seconds, "more than 0")
        call_deadline = min(call_deadline, arrival + message.timeout_seconds)
    below = bundle.abstain_below
    if message.HasField("abstain_below"):
        below = certainty("abstain_below", message.abstain_below)
    rule = answer_rule(message.answer_rule)
    stop, stream = _policies(message, bundle)
    inputs, chain = _rows(message, bundle, stream, below, max_rows, max_links)  # last: it is what costs
    return Request(
        request_id=message.request_id,
        inputs=inputs,
        rows=len(next(iter(inputs.values()))),
        stop=stop,
        stream=stream,
        answer_rule=rule,
        abstain_below=below,
        priority=message.priority,
        deadline=call_deadline,
        arrival=arrival,
        chain=chain,
    )


def _policies(message: pb.ThinkRequest, bundle: Bundle) -> tuple[StopPolicy, StreamPolicy]:
    """When to stop and what to see. Remembered, as most callers ask in the same few ways."""
    asked = message.stop.SerializeToString(), message.stream.SerializeToString()
    found = bundle.policies.get(asked)
    if found is None:
        if (size := sum(map(len, asked))) > _LONGEST_POLICY:
            raise Mismatch("stop and stream", f"{size} bytes", f"at most {_LONGEST_POLICY}; say each thing once")
        when = stop_policy(message.stop, bundle) if asked[0] else bundle.stop
        found = when, stream_policy(message.stream, bundle)
        if len(bundle.policies) >= _MOST_POLICIES:
            bundle.policies.clear()
        bundle.policies[asked] = found
    return found


def _rows(
    message: pb.ThinkRequest,
    bundle: Bundle,
    stream: StreamPolicy,
    abstain_below: float,
    max_rows: int,
    max_links: int,
) -> tuple[dict[str, Array], Chain | None]:
    """The inputs of the first thoughts, and what makes those of the others."""
    seed = message.chain.seed if message.chain.HasField("seed") else randbits(_SEED_BITS)
    if bundle.text is not None:
        text = text_options(message.chain, max_links=max_links)
        inputs = prompts(message.inputs, bundle.text, max_rows=max_rows)
        return inputs, TextChain(bundle.text, text, inputs, seed=seed, predictions=stream.predictions)
    if bundle.diffusion is not None:
        how = diffusion_options(message.chain, bundle.diffusion, max_links=max_links)
        label_N = labels(message.inputs, bundle.diffusion, max_rows=max_rows)
        chain = DiffusionChain(
            bundle.diffusion, how, label_N, seed=seed, stride_above=abstain_below, predictions=stream.predictions
        )
        return chain.begin(), chain
    check_chain(message.chain, bundle)
    return _inputs(message, bundle, max_rows), None


def _inputs(message: pb.ThinkRequest, bundle: Bundle, max_rows: int) -> dict[str, Array]:
    """Every input of the program, [rows, ...], in the program's order."""
    specs = {spec.name: spec for spec in bundle.program.inputs}
    found: dict[str, Array] = {}
    for tensor in message.inputs:
        name = tensor.name
        spec = specs.get(name)
        if spec is None:
            raise Mismatch("inputs", quote(name), f"the inputs of {bundle}: {listing(specs)}")
        if name in found:
            raise Mismatch("inputs", f"{quote(name)} twice", "each input once")
        found[name] = _input(tensor, spec, max_rows)
    if missing := [name for name in specs if name not in found]:
        raise Mismatch("inputs", listing(found), f"also {listing(missing)}")
    rows = {name: len(values) for name, values in found.items()}
    if len(set(rows.values())) > 1:
        raise Mismatch("inputs", ", ".join(f"{n} rows of {quote(name)}" for name, n in rows.items()), "as many of each")
    return {name: found[name] for name in specs}


def _input(tensor: pb.Tensor, spec: TensorSpec, max_rows: int) -> Array:
    what, expected = f"input {quote(spec.name)}", datatype(spec.dtype)
    if tensor.datatype != expected:
        raise Mismatch(f"{what}, datatype", quote(tensor.datatype), expected)
    shape = tensor.shape
    if len(shape) != 1 + len(spec.shape) or tuple(shape[1:]) != spec.shape:
        sizes = ", ".join(str(size) for size in ("rows", *spec.shape))
        raise Mismatch(f"{what}, shape", shape_text(shape), f"[{sizes}]")
    if not 1 <= shape[0] <= max_rows:
        raise Mismatch(f"{what}, rows", shape[0], f"1 to {max_rows}")
    values = array(tensor)
    check_values(what, values, spec)
    return values


def check_values(what: str, values: Array, spec: TensorSpec) -> None:
    """Refuse what the program's input cannot mean.

    Raises:
        Mismatch: says where, what was met, and what is expected.
    """
    if spec.dtype.kind == "b":
        return
    low, high = values.min(), values.max()  # NaN if any value is
    if spec.dtype.kind == "f" and not (isfinite(low) and isfinite(high)):
        row = np.argwhere(~np.isfinite(values))[0]
        raise Mismatch(f"{what}, at {row.tolist()}", values[tuple(row)], "finite numbers")
    if spec.minimum is not None and low < spec.minimum:
        raise Mismatch(f"{what}, smallest value", low, f"at least {spec.minimum:g}")
    if spec.maximum is not None and high > spec.maximum:
        raise Mismatch(f"{what}, largest value", high, f"at most {spec.maximum:g}")
    if spec.values and not (allowed := np.isin(values, spec.values)).all():
        row = np.argwhere(~allowed)[0]
        raise Mismatch(f"{what}, at {row.tolist()}", values[tuple(row)], f"one of {listing(spec.values)}")


def event_message(request_id: str, event: Event, bundle: Bundle) -> pb.ThinkEvent:
    """One event as its caller reads it."""
    if isinstance(event, Tick):
        return ticks_message(request_id, (event,), bundle)
    message = pb.ThinkEvent(request_id=request_id)
    if isinstance(event, Answer):
        _write_answer(message.answer, event, bundle)
    elif isinstance(event, Summary):
        message.summary.abstain_mask.extend(event.abstain_mask)
        message.summary.abstentions.extend(event.abstentions)
        message.summary.ticks_used = event.ticks_used
        message.summary.queue_seconds = event.queue_seconds
        message.summary.think_seconds = event.think_seconds
        message.summary.texts.extend(event.texts)
        for name, values in event.outputs.items():
            fill(message.summary.outputs.add(), name, values)
        if event.seed is not None:
            message.summary.seed = event.seed
        message.summary.model, message.summary.version = bundle.name, bundle.version
    else:
        assert isinstance(event, Failure), f"an event of no known kind: {event!r}"
        message.failure.CopyFrom(failure(event.error))
    return message


def ticks_message(request_id: str, ticks: Sequence[Tick], bundle: Bundle) -> pb.ThinkEvent:
    """Several ticks in one message. It runs for every tick that is watched: parts that never change are kept."""
    message = pb.ThinkEvent(request_id=request_id)
    add = message.ticks.ticks.add
    for tick in ticks:
        written = add(row=tick.row, tick=tick.tick, certainty=tick.certainty)
        if tick.link:
            written.link = tick.link
        if tick.energy is not None:
            written.energy = tick.energy
        if tick.prediction is not None:
            fill(written.prediction, bundle.program.prediction.name, tick.prediction)
        if tick.leading is not None:
            _write_scores(written.top, tick.leading, bundle.labels)
        for name, values in tick.details.items():
            fill(written.details.add(), name, values)
    return message


def failure(error: ServingError) -> pb.Failure:
    """Bad news for one request of a call that goes on."""
    message = pb.Failure(code=code(error), message=str(error))
    if isinstance(error, QueueFull):
        message.retry_after_seconds = error.retry_after_seconds
    return message


def _write_answer(message: pb.Answer, answer: Answer, bundle: Bundle) -> None:
    message.row, message.link = answer.row, answer.link
    message.ticks_used, message.answer_tick = answer.ticks_used, answer.answer_tick
    message.certainty, message.abstained = answer.certainty, answer.abstained
    message.stop_reason = pb.StopReason.ValueType(answer.stop_reason)
    if answer.energy is not None:
        message.energy = answer.energy
    if answer.prediction is not None:
        fill(message.prediction, bundle.program.prediction.name, answer.prediction)
    if answer.leading is not None:
        _write_scores(message.top, answer.leading, bundle.labels)
    message.text = answer.text
    message.chain_end = pb.ChainEnd.ValueType(answer.chain_end)
    for name, values in answer.outputs.items():
        fill(message.outputs.add(), name, values)


def _write_scores(
    target: "RepeatedCompositeFieldContainer[pb.ClassScore]", leading: Leading, labels: tuple[str, ...]
) -> None:
    append = target.append
    for position, (indices, scores) in enumerate(zip(leading.indices.tolist(), leading.scores.tolist(), strict=True)):
        for index, score in zip(indices, scores, strict=True):
            entry = _class_score(index, labels[index] if labels else "", position)
            entry.score = score
            append(entry)  # copies it


@lru_cache(maxsize=4096)
def _class_score(index: int, label: str, position: int) -> pb.ClassScore:
    """A score to be filled in and copied."""
    return pb.ClassScore(index=index, label=label, position=position)
