"""TorchServe's way into the engine: a batch in, one reply to each of its requests out, with ticks on the way.

TorchServe loads this file alone out of the archive; it finds the rest of it in the folder beside.
"""

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from deploy.torchserve.batch import think
from deploy.torchserve.json_form import read_request
from deploy.torchserve.meters import Meters
from deploy.torchserve.reply import Reply
from protos import ctm_serving_pb2 as pb
from serving import wire
from serving.assembly import new_engine
from serving.backends.load import load_backend
from serving.bundle import load_bundle
from serving.errors import InvalidRequest, ServingError, UnknownModel
from serving.mismatch import listing, quote
from serving.settings import BackendConfig, EngineConfig

BODY, DATA, STREAM = "body", "data", "stream"
"""Where a request may stand: HTTP has its body under the first name, gRPC's callers choose one of the others."""

_SHARE = 0.9
"""Of the time after which TorchServe kills a worker that has not answered: by then every request has."""


class ThinkHandler:
    """One worker's model."""

    def initialize(self, context: Any) -> None:
        """Load the bundle of the archive.

        Raises:
            BundleRefused, InstallationLacks, ValueError: it cannot be served; TorchServe logs why.
        """
        settings = context.model_yaml_config
        self._config = EngineConfig.model_validate(settings["ctm"]["engine"])
        (folder,) = Path(context.system_properties["model_dir"]).glob("bundle/*/*")
        self._bundle = load_bundle(folder)
        backend = BackendConfig.model_validate(settings["ctm"]["backend"])
        self._backend = load_backend(self._bundle, backend, self._config)
        self._grpc_streams = bool(settings["ctm"]["grpc_streams"])
        self._patience = _SHARE * settings["responseTimeout"]
        kinds, cache = _torchserve("metrics.metric_type_enum", "MetricTypes"), context.metrics
        self._meters = Meters(lambda name, kind: cache.get_metric(name, kinds(kind)), context.model_name)
        self._send_now = _torchserve("handler_utils.utils", "send_intermediate_predict_response")
        self._failure = _torchserve("utils.util", "PredictionException")

    def handle(self, rows: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Think about all requests of a batch, and answer each."""
        arrival = time.monotonic()
        over_grpc = [_is_grpc(context.get_all_request_header(place)) for place in range(len(rows))]
        replies = []
        for place, row in enumerate(rows):
            if context.get_request_header(place, "describe") == "True":  # and others may be in the batch
                replies.append(Reply(self._bundle, describes=True))
                continue
            reply = self._receive(row, arrival)
            if over_grpc[place]:
                # Only StreamPredictions takes several messages, and TorchServe does not say which method was called.
                reply.streamed = STREAM in row and self._grpc_streams
            replies.append(reply)
        self._think(replies, context)
        self._meters.write()
        return [self._finish(place, replies, context, over_grpc[place]) for place in range(len(rows))]

    def _receive(self, row: Mapping[str, Any], arrival: float) -> Reply:
        reply = Reply(self._bundle)
        try:
            message = read_request(_body(row), self._bundle)
            self._check_model(message)
            # Callers of TorchServe expect one document at the end, unless they say otherwise.
            reply.streamed = reply.in_lines = STREAM in row or message.stream.HasField("every")
            if not reply.in_lines:
                message.stream.every = 0
            reply.request = wire.parse_request(
                message,
                self._bundle,
                max_rows=self._config.max_rows,
                max_links=self._config.max_links,
                arrival=arrival,
                call_deadline=arrival + self._patience,
            )
        except ServingError as error:
            reply.error = error
            self._meters.rejected(error)
        return reply

    def _check_model(self, message: pb.ThinkRequest) -> None:
        """A request need not say what it asks; where it does, it is this."""
        bundle = self._bundle
        if message.model not in ("", bundle.name) or message.version not in (0, bundle.version):
            asked = f"model {quote(message.model)}, version {message.version}"
            raise UnknownModel(f"{asked}; served here is {bundle}")

    def _think(self, replies: Sequence[Reply], context: Any) -> None:
        asked = {reply.request: reply for reply in replies if reply.request is not None}
        engine = new_engine(self._backend, self._config)  # nothing of one batch can reach the next
        for report in think(engine, list(asked)):
            for request, event in report.events:
                asked[request].take(event)
            self._meters.observe(report)
            if engine.num_requests:  # else what is left goes out with the batch
                self._send(replies, context)

    def _send(self, replies: Sequence[Reply], context: Any) -> None:
        """Send what has happened to those who watch."""
        places = [place for place, reply in enumerate(replies) if reply.streamed and reply.events]
        # A failure that comes before anything else is a status of its own, at the end.
        places = [place for place in places if replies[place].begun or replies[place].error is None]
        if not places:
            return
        bodies = {}
        for place in places:
            replies[place].begun = True
            context.set_response_status(200, "OK", place)
            context.set_response_content_type(place, replies[place].content_type)
            bodies[place] = replies[place].body()
        ids = {place: context.request_ids[place] for place in places}
        self._send_now(bodies, ids, "", 200, context)

    def _finish(self, place: int, replies: Sequence[Reply], context: Any, over_grpc: bool) -> bytes:
        """The end of a reply.

        Raises:
            PredictionException: the only way to a gRPC status, which is one for a whole batch.
        """
        reply = replies[place]
        if over_grpc:
            if len(replies) == 1 and reply.error is not None and not reply.begun:
                raise self._failure(str(reply.error), int(reply.status))
            # Without it, StreamPredictions would wait for more for ever.
            context.set_response_header(place, "ts_stream_next", "false")
        if not reply.begun:
            context.set_response_status(int(reply.status), reply.status.phrase, place)
            context.set_response_content_type(place, reply.content_type)
        return reply.body()


def _body(row: Mapping[str, Any]) -> object:
    """The request itself.

    Raises:
        InvalidRequest: there is none, or something else stands beside it.
    """
    expected = (BODY, DATA, STREAM)
    if len(row) != 1 or not row.keys() <= set(expected):
        raise InvalidRequest(f"request: got {listing(map(quote, row))}, expected one of {listing(expected)}")
    return next(iter(row.values()))


def _is_grpc(headers: Mapping[str, object]) -> bool:
    """TorchServe does not say it, but hands over HTTP's headers, a token's among them; of gRPC there are none.

    What is no text describes the parameters.
    """
    return not any(isinstance(value, str) for value in headers.values())


def _torchserve(module: str, name: str) -> Any:
    """Something of TorchServe's own, which is there only where TorchServe runs."""
    return getattr(import_module(f"ts.{module}"), name)
