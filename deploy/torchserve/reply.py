"""What one caller of a batch is told, and how it travels: one JSON document, or lines as they happen."""

from dataclasses import dataclass, field
from http import HTTPStatus

from google.protobuf.json_format import MessageToJson

from deploy.torchserve import json_form
from protos import ctm_serving_pb2 as pb
from serving.bundle import Bundle
from serving.errors import ServingError
from serving.events import Event, Failure
from serving.request import Request
from serving.status import code

STATUS: dict[int, HTTPStatus] = {
    pb.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    pb.NOT_FOUND: HTTPStatus.NOT_FOUND,
    pb.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    pb.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    pb.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    pb.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""Our codes as HTTP has them; TorchServe turns them into gRPC's again."""

_LINES = "application/x-ndjson"


@dataclass(slots=True, eq=False)
class Reply:
    """To the request at one place of a batch."""

    bundle: Bundle
    request: Request | None = None
    """None when it was refused before it came to the engine, or asks for no thought."""
    describes: bool = False
    """Whether it is about the model itself: then the manifest is the reply."""
    error: ServingError | None = None
    """Why it was refused, or failed."""
    in_lines: bool = False
    """Whether it is one event a line, ticks too, and no single document."""
    streamed: bool = False
    """Whether its lines go out as they happen, and not all at the end."""
    begun: bool = False
    """Whether any have gone out: then its status is sent."""
    events: list[Event] = field(default_factory=list)
    """Those that have not gone out."""

    def take(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Failure):
            self.error = event.error

    @property
    def status(self) -> HTTPStatus:
        """Of the whole reply; of one that has begun nobody asks any more."""
        return HTTPStatus.OK if self.error is None else STATUS[int(code(self.error))]

    @property
    def content_type(self) -> str:
        return _LINES if self.in_lines and (self.begun or self.error is None) else "application/json"

    def body(self) -> bytes:
        """What is left to say."""
        if self.describes:
            return MessageToJson(self.bundle.manifest, preserving_proto_field_name=True).encode()
        if self.request is None:
            assert self.error is not None, "a request is refused for a reason"
            return json_form.refusal(self.error)
        events, self.events = self.events, []
        write = json_form.lines if self.content_type == _LINES else json_form.document
        return write(events, self.request.request_id, self.bundle)
