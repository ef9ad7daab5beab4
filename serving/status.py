"""How each kind of bad news leaves the server: one table from error to gRPC status."""

from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from protos import ctm_serving_pb2 as pb
from serving.errors import (
    BackendFailed,
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    ServingError,
    Unavailable,
    UnknownModel,
)

STATUS: dict[type[ServingError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    BackendFailed: grpc.StatusCode.INTERNAL,
}

_DETAILS = "grpc-status-details-bin"  # a serialised google.rpc.Status

Metadata = tuple[tuple[str, str | bytes], ...]


def status_code(error: ServingError) -> grpc.StatusCode:
    """The status of the error's class, or of the nearest class it derives from."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), grpc.StatusCode.INTERNAL)


def code(error: ServingError) -> pb.Code.ValueType:
    """The same as a number of our protocol, for a failure inside a stream."""
    return pb.Code.ValueType(status_code(error).value[0])


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: ServingError) -> NoReturn:
    """End the call with the error's status and sentence.

    `QueueFull` carries a `google.rpc.RetryInfo` where gRPC clients look for it (`grpc_status.rpc_status.from_call`).
    """
    await context.abort(status_code(error), str(error), metadata(error))
    raise AssertionError("abort raises")


def metadata(error: ServingError) -> Metadata:
    """What goes along with the status."""
    if not isinstance(error, QueueFull):
        return ()
    delay = Duration()
    delay.FromNanoseconds(round(error.retry_after_seconds * 1e9))
    status = Status(code=code(error), message=str(error))
    status.details.add().Pack(RetryInfo(retry_delay=delay))
    return ((_DETAILS, status.SerializeToString()),)
