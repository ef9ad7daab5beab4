"""Every kind of bad news has its status, in calls and inside streams."""

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from protos import ctm_serving_pb2 as pb
from serving import errors, status, wire


class Odd(errors.ServingError):
    pass


class Late(errors.DeadlineExceeded):
    pass


CASES = [
    pytest.param(errors.InvalidRequest("no"), "INVALID_ARGUMENT", id="invalid"),
    pytest.param(errors.UnknownModel("no"), "NOT_FOUND", id="unknown model"),
    pytest.param(errors.QueueFull("no", retry_after_seconds=1.25), "RESOURCE_EXHAUSTED", id="queue full"),
    pytest.param(errors.Unavailable("no"), "UNAVAILABLE", id="draining"),
    pytest.param(errors.DeadlineExceeded("no"), "DEADLINE_EXCEEDED", id="deadline"),
    pytest.param(errors.BackendFailed("no"), "INTERNAL", id="backend"),
    pytest.param(Late("no"), "DEADLINE_EXCEEDED", id="a kind of deadline"),
    pytest.param(Odd("no"), "INTERNAL", id="a kind that the table does not know"),
]


@pytest.mark.parametrize(("error", "name"), CASES)
def test_the_status_of_an_error(error, name):
    assert status.status_code(error) is grpc.StatusCode[name]
    assert pb.Code.Name(status.code(error)) == name


@pytest.mark.parametrize(("error", "name"), CASES)
def test_a_failure_inside_a_stream_says_the_same(error, name):
    failure = wire.failure(error)
    assert (pb.Code.Name(failure.code), failure.message) == (name, "no")
    assert failure.HasField("retry_after_seconds") == isinstance(error, errors.QueueFull)


def test_every_error_class_has_a_status():
    assert set(status.STATUS) == set(errors.ServingError.__subclasses__()) - {Odd}


def test_our_codes_are_grpcs():
    grpcs = {code.name: code.value[0] for code in grpc.StatusCode}
    ours = {name.removeprefix("REQUEST_"): number for name, number in pb.Code.items()}
    assert ours.items() <= grpcs.items()


class Call:
    """A finished call, as a client sees it."""

    def __init__(self, error: errors.ServingError) -> None:
        self.error = error

    def code(self) -> grpc.StatusCode:
        return status.status_code(self.error)

    def details(self) -> str:
        return str(self.error)

    def trailing_metadata(self) -> status.Metadata:
        return status.metadata(self.error)


def test_a_full_queue_says_when_to_come_back_where_clients_look_for_it():
    rich = rpc_status.from_call(Call(errors.QueueFull("full", retry_after_seconds=1.25)))
    retry = RetryInfo()
    assert rich.details[0].Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.25
    assert wire.failure(errors.QueueFull("full", retry_after_seconds=1.25)).retry_after_seconds == 1.25


def test_no_other_error_has_details():
    assert rpc_status.from_call(Call(errors.InvalidRequest("no"))) is None


class Context:
    """Remembers how it was aborted."""

    async def abort(self, *arguments: object) -> None:
        self.arguments = arguments
        raise grpc.aio.AbortError


async def test_a_call_is_aborted_with_status_and_sentence():
    context = Context()
    with pytest.raises(grpc.aio.AbortError):
        await status.abort(context, errors.UnknownModel("no model 'x'"))
    assert context.arguments == (grpc.StatusCode.NOT_FOUND, "no model 'x'", ())
