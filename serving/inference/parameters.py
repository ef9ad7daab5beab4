"""Request parameters of the Open Inference Protocol, written into the same request that `Think` takes.

Each has the name of the field or chain option that it becomes, but for two that share one: a stream's `top_k` is called
`leading`, and diffusion's `every` `images_every`. What values are allowed is checked where every request is; here only
their kinds are. Numbers may come as text, for there are clients that can send no others.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from google.protobuf.message import Message

from protos import ctm_serving_pb2 as pb
from protos import open_inference_pb2 as oip
from serving.mismatch import Mismatch, listing, quote

PRIORITY_LEVELS = 199
DEFAULT_PRIORITY = 100
"""This protocol admits smaller priorities first, from 1; a request of this one stands where `Think` has 0."""

EMPTY_FINAL = "triton_enable_empty_final_response"
"""Asks that a stream's last response be one without outputs."""

_RULES = tuple(pb.AnswerRule.keys()[1:])
_REASONS = tuple(pb.StopReason.keys()[1:])
_MOST_32, _MOST_64 = 2**32 - 1, 2**64 - 1
_LONGEST_LIST = 16_384
"""Characters of a list of names: more say the same again and again."""

Parameters = Mapping[str, oip.InferParameter]
Reader = Callable[[str, oip.InferParameter], Any]
Write = Callable[[pb.ThinkRequest, str, oip.InferParameter], None]


def write_parameters(parameters: Parameters, think: pb.ThinkRequest) -> None:
    """Fill in what a caller wishes, but for its inputs.

    Raises:
        Mismatch: a parameter that there is not, of another kind, or twice under two names.
    """
    for name in parameters:
        if name not in _WRITERS:
            raise Mismatch("parameters", quote(name), f"of {listing(sorted(_WRITERS), len(_WRITERS))}")
    if "timeout" in parameters and "timeout_seconds" in parameters:
        raise Mismatch("parameters", "timeout and timeout_seconds", "one of them")
    for name, write in _WRITERS.items():
        if name in parameters:
            write(think, name, parameters[name])


def flag(parameters: Parameters, name: str) -> bool:
    """A parameter that is true or false, and false unless it is given."""
    return name in parameters and _flag(name, parameters[name])


def _number(name: str, value: oip.InferParameter) -> float:
    kind, found = _value(value)
    try:
        if kind != "bool_param" and found is not None:
            return float(found)
    except ValueError:
        pass
    raise Mismatch(_what(name), _met(value), "a number")


def _whole(name: str, value: oip.InferParameter, *, least: int = 0, most: int = _MOST_32) -> int:
    kind, found = _value(value)
    try:
        whole = int(found) if kind in ("int64_param", "uint64_param", "string_param") else None
    except ValueError:
        whole = None
    if whole is None or not least <= whole <= most:
        raise Mismatch(_what(name), _met(value), f"a whole number, {least} to {most}")
    return whole


def _flag(name: str, value: oip.InferParameter) -> bool:
    if value.WhichOneof("parameter_choice") != "bool_param":
        raise Mismatch(_what(name), _met(value), "true or false")
    return value.bool_param


def _text(name: str, value: oip.InferParameter) -> str:
    if value.WhichOneof("parameter_choice") != "string_param":
        raise Mismatch(_what(name), _met(value), "a text")
    return value.string_param


def _names(name: str, value: oip.InferParameter) -> list[str]:
    """`a,b` is two names."""
    text = _text(name, value)
    if len(text) > _LONGEST_LIST:
        raise Mismatch(_what(name), f"{len(text)} characters", f"at most {_LONGEST_LIST}")
    return [one.strip() for one in text.split(",") if one.strip()]


def _rule(name: str, value: oip.InferParameter) -> pb.AnswerRule.ValueType:
    text = _text(name, value)
    if text not in _RULES:
        raise Mismatch(_what(name), _met(value), f"one of {listing(_RULES)}")
    return pb.AnswerRule.Value(text)


def _reasons(name: str, value: oip.InferParameter) -> list[pb.StopReason.ValueType]:
    names = _names(name, value)
    for one in names:
        if one not in _REASONS:
            raise Mismatch(_what(name), quote(one), f"any of {listing(_REASONS)}")
    return [pb.StopReason.Value(one) for one in names]


def _priority(name: str, value: oip.InferParameter) -> int:
    level = _whole(name, value, most=PRIORITY_LEVELS)
    return DEFAULT_PRIORITY - level if level else 0


def _field(
    read: Reader, part: str, think: pb.ThinkRequest, name: str, value: oip.InferParameter, *, field: str = ""
) -> None:
    """Read a value into the field of its name, or another's, of a part of the request, or of the request itself."""
    message: Message = getattr(think, part) if part else think
    found = read(name, value)
    if isinstance(found, list):
        getattr(message, field or name).extend(found)
    else:
        setattr(message, field or name, found)


def _option(
    read: Reader, kind: str, think: pb.ThinkRequest, name: str, value: oip.InferParameter, *, field: str = ""
) -> None:
    setattr(think.chain.options[field or name], kind, read(name, value))


def _timeout(think: pb.ThinkRequest, name: str, value: oip.InferParameter) -> None:
    """In microseconds, as this protocol has it; 0 is none."""
    if microseconds := _whole(name, value, most=_MOST_64):
        think.timeout_seconds = microseconds / 1e6


def _elsewhere(think: pb.ThinkRequest, name: str, value: oip.InferParameter) -> None:
    """Of whoever writes responses, or of HTTP alone."""
    del think
    _flag(name, value)


_number_option = partial(_option, _number, "number")
_whole_option = partial(_option, _whole, "integer")

_WRITERS: dict[str, Write] = {
    "certainty_threshold": partial(_field, _number, "stop"),
    "min_ticks": partial(_field, _whole, "stop"),
    "max_ticks": partial(_field, _whole, "stop"),
    "patience": partial(_field, _whole, "stop"),
    "energy_threshold": partial(_field, _number, "stop"),
    "energy_delta": partial(_field, _number, "stop"),
    "disabled": partial(_field, _reasons, "stop"),
    "answer_rule": partial(_field, _rule, ""),
    "abstain_below": partial(_field, _number, ""),
    "every": partial(_field, _whole, "stream"),
    "predictions": partial(_field, _flag, "stream"),
    "leading": partial(_field, _whole, "stream", field="top_k"),
    "details": partial(_field, _names, "stream"),
    "max_links": partial(_field, _whole, "chain"),
    "seed": partial(_field, partial(_whole, most=_MOST_64), "chain"),
    "temperature": _number_option,
    "top_k": _whole_option,
    "top_p": _number_option,
    "stop": partial(_option, _text, "text"),
    "steps": _whole_option,
    "eta": _number_option,
    "stride": _whole_option,
    "images_every": partial(_whole_option, field="every"),
    "priority": partial(_field, _priority, ""),
    "timeout": _timeout,
    "timeout_seconds": partial(_field, _number, ""),
    EMPTY_FINAL: _elsewhere,
    "binary_data_output": _elsewhere,
}


def _value(value: oip.InferParameter) -> tuple[str | None, Any]:
    """The kind of a parameter, and what it holds."""
    kind = value.WhichOneof("parameter_choice")
    return kind, getattr(value, kind) if kind else None


def _what(name: str) -> str:
    return f"parameter {quote(name)}"


def _met(value: oip.InferParameter) -> str:
    kind, found = _value(value)
    return "nothing" if kind is None else quote(found)
