"""The client for ordinary code: calls block, events are iterated over. May be shared by threads."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Protocol, Self, Unpack, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import ArrayLike

from protos import ctm_bundle_pb2 as bundle_pb2
from protos import ctm_serving_pb2 as pb
from protos import ctm_serving_pb2_grpc as pb_grpc
from serving.client import channel
from serving.client.errors import Cancelled, DeadlineExceeded, ThinkError, Unavailable, from_rpc, retry_delay
from serving.client.events import Event, ModelInfo, Result, collect, events_of, model_info
from serving.client.message import (
    LAST_WORD_SECONDS,
    AnswerOptions,
    GenerateOptions,
    SampleOptions,
    ThinkOptions,
    answer_options,
    generate_message,
    request_message,
    sample_message,
)


class Call(Protocol):
    """What gRPC returns for a streamed answer."""

    def __iter__(self) -> Iterator[pb.ThinkEvent]: ...
    def cancel(self) -> object: ...


class Client:
    """A connection to a server, made at the first call.

    Args:
        credentials: for TLS; None speaks plain text.
        retries: how often a request is sent again that the server had no room or was not ready for, after the time it
            suggests. Never once its first event has arrived.
        balance: spread the calls over all addresses of the name (`dns:///replicas.example:50051`) that say they serve;
            otherwise they all go to one of them.
    """

    def __init__(
        self,
        address: str = channel.DEFAULT_ADDRESS,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        retries: int = 0,
        balance: bool = False,
    ) -> None:
        self.address = address
        self._retries = retries
        options = channel.BALANCED if balance else channel.OPTIONS
        self._channel = (
            grpc.secure_channel(address, credentials, options)
            if credentials
            else grpc.insecure_channel(address, options)
        )
        self._stub = pb_grpc.ThinkerStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what still thinks is cancelled."""
        self._channel.close()

    def think(self, model: str, inputs: Mapping[str, ArrayLike], **options: Unpack[ThinkOptions]) -> "Thinking":
        """Begin to think about the rows of `inputs`, each [rows, ...] in the model's datatype.

        Raises:
            ValueError, TypeError: an option that no server could take. What the server refuses is raised when the
                events are read.
        """
        return self._begin(request_message(model, inputs, **options), options.get("timeout"))

    def generate(self, model: str, prompt: str | Sequence[str], **options: Unpack[GenerateOptions]) -> "Thinking":
        """Begin to write the text that follows a prompt, or each of several: an answer for each token, as it comes.

        Raises:
            ValueError, TypeError: as `think`.
        """
        return self._begin(generate_message(model, prompt, **options), options.get("timeout"))

    def sample(self, model: str, label: ArrayLike, **options: Unpack[SampleOptions]) -> "Thinking":
        """Begin to draw an image of a class, by number or name, or one of each of several: an answer for each step.

        Raises:
            ValueError, TypeError: as `think`.
        """
        return self._begin(sample_message(model, label, **options), options.get("timeout"))

    def answer(self, model: str, inputs: Mapping[str, ArrayLike], **options: Unpack[AnswerOptions]) -> Result:
        """Think, and see the answers only; the best class is named unless `top_k` says otherwise.

        Raises:
            ThinkError: the request failed.
        """
        with self.think(model, inputs, **answer_options(options)) as thinking:
            return thinking.result()

    def _begin(self, message: pb.ThinkRequest, timeout: float | None) -> "Thinking":
        def begin(remaining: float | None) -> Call:
            return self._stub.Think(message, timeout=remaining)

        return Thinking(begin, timeout=timeout, retries=self._retries)

    def list_models(self) -> list[ModelInfo]:
        """What is served."""
        try:
            response = self._stub.ListModels(pb.ListModelsRequest(), timeout=channel.CALL_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        return [model_info(model) for model in response.models]

    def get_model(self, model: str, version: int = 0) -> bundle_pb2.Manifest:
        """The manifest of a model: its tensors, defaults, labels, measured quality. Version 0 is the newest."""
        try:
            request = pb.GetModelRequest(model=model, version=version)
            return self._stub.GetModel(request, timeout=channel.CALL_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc(error) from None

    def wait_ready(self, within: float = 30.0, *, model: str = "") -> None:
        """Wait until the server serves, or until it serves one model.

        Raises:
            Unavailable: it did not within that many seconds.
        """
        check = cast(Any, health_pb2_grpc.HealthStub(self._channel)).Check  # its type names no methods
        request = health_pb2.HealthCheckRequest(service=model)
        deadline = time.monotonic() + within
        met = "no answer"
        while (remaining := deadline - time.monotonic()) > 0:
            try:
                status = check(request, timeout=remaining, wait_for_ready=True).status
            except grpc.RpcError as error:
                failure = from_rpc(error)
                if not isinstance(failure, DeadlineExceeded):  # which says less than what came before
                    met = failure.message or failure.code.name
            else:
                if status == health_pb2.HealthCheckResponse.SERVING:
                    return
                met = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
            time.sleep(channel.POLL_SECONDS)
        raise Unavailable(channel.not_ready(model, self.address, within, met))


class Thinking:
    """One request under way: its events, in order, to be iterated over once.

    The request is cancelled on the server when its `with` block ends, when a loop over it is left early, or by `cancel`
    from any thread; a loop that waits then ends with `Cancelled`.
    """

    def __init__(self, begin: Callable[[float | None], Call], *, timeout: float | None, retries: int) -> None:
        self._begin, self._retries = begin, retries
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._cancelled = False
        self._read = False
        self._call = self._ask()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[Event]:
        if self._read:
            raise RuntimeError("the events of a request are read once")
        self._read = True
        return self._events()

    def cancel(self) -> None:
        """Stop thinking; of no effect on a request that has ended."""
        self._cancelled = True
        self._call.cancel()

    close = cancel

    def result(self) -> Result:
        """Read to the end, and gather the answers."""
        result = collect(self)
        if result is None:
            raise ThinkError("the server ended the request without a summary")
        return result

    def _events(self) -> Iterator[Event]:
        try:
            for attempt in count():
                arrived = False
                try:
                    for message in self._call:
                        arrived = True
                        yield from events_of(message)
                    return
                except grpc.RpcError as error:
                    failure = from_rpc(error)
                if arrived or attempt >= self._retries or not self._wait(retry_delay(failure, attempt)):
                    raise failure
                self._call = self._ask()
                if self._cancelled:  # by another thread, which then met the call before
                    self._call.cancel()
        finally:  # also when the loop over this is left early
            self._call.cancel()

    def _wait(self, delay: float | None) -> bool:
        """Wait before asking again; False when that is no use."""
        until = time.monotonic() + (delay or 0.0)
        if delay is None or (self._deadline is not None and until >= self._deadline):
            return False
        while (remaining := until - time.monotonic()) > 0 and not self._cancelled:
            time.sleep(min(remaining, channel.POLL_SECONDS))
        if self._cancelled:
            raise Cancelled("cancelled while waiting to ask again")
        return True

    def _ask(self) -> Call:
        remaining = None if self._deadline is None else self._deadline + LAST_WORD_SECONDS - time.monotonic()
        return self._begin(remaining)
