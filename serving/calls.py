"""What our services need of gRPC: methods that say so when bytes are no message, deadlines, callers that are lost."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from serving.errors import InvalidRequest

M = TypeVar("M", bound=Message)

ServicerContext = grpc.aio.ServicerContext[Any, Any]
Method = tuple[Callable[..., Any], Callable[..., "grpc.RpcMethodHandler[Any, Any]"], type[Message]]
"""What runs it; one of gRPC's four kinds of handler; the message that a caller sends."""

LOST = grpc.aio.InternalError
"""What a write raises when nobody is left to read; ends a call as quietly as a caller who cancels."""


def add_service(server: grpc.aio.Server, name: str, methods: Mapping[str, Method]) -> None:
    """Add a service to a server.

    As the generated function does, but bytes that are no message reach the method as None, so that it can say so:
    gRPC's own answer is UNKNOWN, and a traceback in the log for whatever a stranger sends.
    """
    handlers = {
        method: handler(
            run,
            request_deserializer=partial(_parse, kind),
            response_serializer=lambda message: message.SerializeToString(),
        )
        for method, (run, handler, kind) in methods.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))


def sound(request: M | None) -> M:
    """The request, once it is known to be one."""
    if request is None:
        raise InvalidRequest("got bytes that are not a message of this method, expected one of its .proto file")
    return request


def deadline(context: ServicerContext) -> float:
    """When the caller stops waiting, in monotonic seconds; `inf` when it never does."""
    remaining = context.time_remaining()
    return inf if remaining is None else time.monotonic() + remaining


def _parse(kind: type[M], data: bytes) -> M | None:
    try:
        return kind.FromString(data)
    except DecodeError:
        return None
