"""What can go wrong with a request, as exceptions: one class for each status that the server answers with."""

from typing import Any, ClassVar, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from protos import ctm_serving_pb2 as pb


class ThinkError(Exception):
    """A request failed; the message is the server's sentence.

    Attributes:
        code: the gRPC status.
        retry_after_seconds: when the server suggests to try again; None when it does not.
    """

    usual_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self, message: str, *, code: grpc.StatusCode | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.usual_code
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(ThinkError):
    """The request does not fit the model or contradicts itself; sending it again will not help."""

    usual_code = grpc.StatusCode.INVALID_ARGUMENT


class UnknownModel(ThinkError):
    """No such model or version is served there."""

    usual_code = grpc.StatusCode.NOT_FOUND


class QueueFull(ThinkError):
    """Too many thoughts wait; `retry_after_seconds` says when to try again."""

    usual_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(ThinkError):
    """The server cannot be reached, is shutting down, or its model is not ready."""

    usual_code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(ThinkError):
    """The time was up before there was any answer."""

    usual_code = grpc.StatusCode.DEADLINE_EXCEEDED


class BackendFailed(ThinkError):
    """The model failed while it held this request."""

    usual_code = grpc.StatusCode.INTERNAL


class Cancelled(ThinkError):
    """The request was cancelled, here or by the server."""

    usual_code = grpc.StatusCode.CANCELLED


_CLASS_OF = {
    error.usual_code: error
    for error in (InvalidRequest, UnknownModel, QueueFull, Unavailable, DeadlineExceeded, BackendFailed, Cancelled)
}
_TOO_LARGE = "message larger than max"
"""gRPC's own words for a message that never fits; their status is otherwise that of a queue that is full just now."""
_CODE_OF = {code.value[0]: code for code in grpc.StatusCode}


def from_rpc(error: grpc.RpcError) -> ThinkError:
    """A call's failure, sync or async, with the RetryInfo of its status details."""
    call = cast(Any, error)  # RpcError's type does not say that every one raised by a call is that call
    details = dict(call.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    message = call.details() or ""
    if call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in message:
        return InvalidRequest(message, code=call.code())
    return _make(call.code(), message, _retry_after(details))


def from_failure(failure: pb.Failure) -> ThinkError:
    """One request's failure on a call that goes on."""
    retry_after = failure.retry_after_seconds if failure.HasField("retry_after_seconds") else None
    return _make(_CODE_OF.get(failure.code, grpc.StatusCode.UNKNOWN), failure.message, retry_after)


def retry_delay(error: ThinkError, attempt: int) -> float | None:
    """Seconds to wait before asking again: the server's own, else 0.1, 0.2, 0.4 …; None when asking again is no use.

    Args:
        attempt: how many have failed before this one.
    """
    if not isinstance(error, QueueFull | Unavailable):
        return None
    if error.retry_after_seconds is not None:
        return error.retry_after_seconds
    return min(0.1 * float(2**attempt), 5.0)


def _retry_after(details: bytes) -> float | None:
    status, info = status_pb2.Status(), error_details_pb2.RetryInfo()
    try:
        status.ParseFromString(details)
        if not any(detail.Unpack(info) for detail in status.details):
            return None
    except DecodeError:  # a proxy's, perhaps: the status itself still counts
        return None
    return float(info.retry_delay.ToTimedelta().total_seconds())


def _make(code: grpc.StatusCode, message: str, retry_after_seconds: float | None) -> ThinkError:
    return _CLASS_OF.get(code, ThinkError)(message, code=code, retry_after_seconds=retry_after_seconds)
