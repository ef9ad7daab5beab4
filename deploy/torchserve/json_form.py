"""Requests and events in protobuf's JSON form, with the field names of `protos/ctm_serving.proto`.

    JSON --read_request--> ThinkRequest --wire.parse_request--> Request
    Event --lines, document--> JSON

A tensor's `data` is base64, as protobuf has it, or nested lists of numbers, truths or texts: then datatype and shape
may be left out.
"""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from protos import ctm_serving_pb2 as pb
from serving import wire
from serving.bundle import Bundle
from serving.errors import InvalidRequest, ServingError
from serving.events import Event, Tick
from serving.mismatch import Mismatch, listing, quote
from serving.request import Array
from serving.tensors import tensor_message, text_message

Document = dict[str, Any]

_KINDS = "a JSON object with the fields of ThinkRequest"
_LONGEST = 400
"""Characters of a parser's complaint that are passed on: it repeats what it was sent."""


def read_request(body: object, bundle: Bundle) -> pb.ThinkRequest:
    """The request that a body holds: text, bytes, or JSON that somebody parsed already.

    Raises:
        InvalidRequest: it holds none; says where, what was met, and what is expected.
    """
    document = dict(_object("request", _parsed(body), _KINDS))
    inputs = document.pop("inputs", [])
    if not isinstance(inputs, list):
        raise InvalidRequest(f"inputs: got {_kind(inputs)}, expected a list of tensors")
    message = pb.ThinkRequest()
    _fill("request", document, message)
    try:
        message.inputs.extend(_tensor(place, each, bundle) for place, each in enumerate(inputs))
    except Mismatch as error:
        raise InvalidRequest(str(error)) from error
    return message


def lines(events: Sequence[Event], request_id: str, bundle: Bundle) -> bytes:
    """One ThinkEvent a line; ticks that stand together share one."""
    messages: list[pb.ThinkEvent] = []
    for are_ticks, group in groupby(events, key=lambda event: isinstance(event, Tick)):
        if are_ticks:
            messages.append(
                wire.ticks_message(request_id, [event for event in group if isinstance(event, Tick)], bundle)
            )
        else:
            messages += [wire.event_message(request_id, event, bundle) for event in group]
    return b"".join(json.dumps(_written(message)).encode() + b"\n" for message in messages)


def document(events: Sequence[Event], request_id: str, bundle: Bundle) -> bytes:
    """Everything that a request came to, its ticks apart: answers by row and link, and the summary or the failure."""
    whole: Document = {"request_id": request_id}
    answers = []
    for event in events:
        if isinstance(event, Tick):
            continue
        message = wire.event_message(request_id, event, bundle)
        kind = message.WhichOneof("event")
        assert kind is not None, "an event is of one kind"
        if kind == "answer":
            answers.append(message.answer)
        else:
            whole[kind] = _written(getattr(message, kind))
    if "failure" not in whole:
        answers.sort(key=lambda answer: (answer.row, answer.link))
        whole = {"request_id": request_id, "answers": [_written(answer) for answer in answers]} | whole
    return json.dumps(whole).encode() + b"\n"


def refusal(error: ServingError) -> bytes:
    """What a request that was refused before it had any event is told."""
    return json.dumps({"request_id": "", "failure": _written(wire.failure(error))}).encode() + b"\n"


def _parsed(body: object) -> object:
    try:
        if isinstance(body, bytes | bytearray):
            body = body.decode()
        if not isinstance(body, str):  # somebody parsed it
            body = json.dumps(body)
        parsed = json.loads(body)
        if "\\ud" in body.lower():  # perhaps half of a surrogate pair, which protobuf cannot hold
            json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:  # errors of Unicode and of JSON are ValueErrors
        raise InvalidRequest(f"request: got no JSON ({str(error)[:_LONGEST]}), expected {_KINDS}") from error
    return parsed


def _object(what: str, value: object, expected: str) -> Document:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what}: got {_kind(value)}, expected {expected}")
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth", type(None): "null"}
    return names.get(type(value), "a number")


def _fill(what: str, document: Document, message: Message) -> None:
    try:
        ParseDict(document, message)
    except (ParseError, ValueError, TypeError, RecursionError) as error:
        said = " ".join(str(error).split())[:_LONGEST]
        raise InvalidRequest(f"{what}: got {said}, expected protobuf's JSON form of the message") from error


def _tensor(place: int, value: object, bundle: Bundle) -> pb.Tensor:
    what = f"inputs[{place}]"
    given = _object(what, value, "a tensor: name, datatype, shape and data")
    data, name = given.get("data"), given.get("name", "")
    if not isinstance(data, list):
        message = pb.Tensor()
        _fill(what, given, message)
        return message
    if unknown := sorted(given.keys() - {"name", "datatype", "shape", "data"}):
        raise Mismatch(what, listing(map(quote, unknown)), "name, datatype, shape and data")
    if not isinstance(name, str):
        raise Mismatch(f"{what}, name", _kind(name), "a text")
    message = _from_lists(f"{what}, data", name, data, bundle)
    for field, met in (("datatype", message.datatype), ("shape", list(message.shape))):
        if field in given and given[field] != met:
            raise Mismatch(f"{what}, {field}", quote(given[field]), f"{quote(met)}, as data has it, or nothing")
    return message


def _from_lists(what: str, name: str, data: list[object], bundle: Bundle) -> pb.Tensor:
    """Nested lists in the datatype of the input of that name; texts as they are."""
    if data and all(isinstance(value, str) for value in data):
        return text_message(name, [str(value) for value in data])
    try:
        values = np.asarray(data)
    except (ValueError, RecursionError) as error:
        raise Mismatch(what, "lists of different lengths", "nested lists of one shape") from error
    if values.dtype.kind not in "biuf":
        raise Mismatch(what, "what are no numbers", "nested lists of numbers, or a list of texts")
    dtypes = {spec.name: spec.dtype for spec in bundle.program.inputs}
    return tensor_message(name, _cast(what, values, dtypes.get(name, values.dtype)))


def _cast(what: str, values: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        cast: Array = values.astype(dtype)
    # Rounding a number to the nearest FP32 is what everybody wants; a 7.5 that becomes the class 7 is not.
    if dtype.kind != "f" and not (cast == values).all():
        wrong = values[cast != values].flat[0]
        raise Mismatch(what, wrong, f"values of {dtype.name}")
    return cast


def _written(message: Message) -> Document:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
