"""One request's events, made into responses of the Open Inference Protocol.

ModelInfer          answers, summary ---------> one response
ModelStreamInfer    ticks, answers, summary --> a response each as they come, the last of them as ModelInfer's
"""

from collections.abc import Iterator, Sequence

from protos import open_inference_pb2 as oip
from serving.errors import QueueFull, ServingError
from serving.events import Answer, Event, Summary, Tick
from serving.inference.asked import Asked
from serving.inference.outputs import Result, answer_columns, is_chain, tick_columns
from serving.inference.tensors import Columns, write_outputs
from serving.models import Served
from serving.request import Request
from serving.rpc import tick_bytes
from serving.status import status_code

FINAL = "triton_final_response"
_LARGE = 2**19
"""Bytes of ticks after which they go out, so that those of many rows are no larger than a caller takes."""

_MOST_INT64 = 2**63 - 1


class Responses:
    """Writes the responses to one request."""

    def __init__(self, asked: Asked, served: Served, request: Request) -> None:
        self._asked, self._bundle, self._id = asked, served.bundle, request.request_id
        self._chain = is_chain(served.bundle)
        self._several = self._chain or request.rows > 1
        self._result = Result(served.bundle, request.rows)

    def whole(self, events: Sequence[Event]) -> oip.ModelInferResponse | None:
        """The one response, once all answers are in; what failed is not for here."""
        for event in events:
            if isinstance(event, Answer):
                self._result.add(event)
            elif isinstance(event, Summary):
                return self._last(event)
        return None

    def on_the_way(self, events: Sequence[Event]) -> Iterator[oip.ModelStreamInferResponse]:
        """Responses as they come, each marked whether it is the last: ticks of different rows stand together.

        An answer that is the only one of its request stands in the last response alone.
        """
        ticks: dict[int, Tick] = {}  # by row
        for event in events:
            if ticks and not (isinstance(event, Tick) and _fits(event, ticks)):
                yield self._ticks(ticks)
                ticks = {}
            if isinstance(event, Tick):
                ticks[event.row] = event
            elif isinstance(event, Answer):
                self._result.add(event)
                if self._several:
                    predictions = self._asked.predictions or not self._chain
                    columns = answer_columns(event, self._bundle, predictions=predictions)
                    yield _streamed(self._response(columns), final=False)
            elif isinstance(event, Summary):
                yield _streamed(self._last(event), final=not self._asked.empty_final)
                if self._asked.empty_final:
                    yield _streamed(self._response({}), final=True)
        if ticks:
            yield self._ticks(ticks)

    def _ticks(self, ticks: dict[int, Tick]) -> oip.ModelStreamInferResponse:
        columns = tick_columns(list(ticks.values()), self._bundle, predictions=self._asked.predictions)
        return _streamed(self._response(columns), final=False)

    def _last(self, summary: Summary) -> oip.ModelInferResponse:
        columns, wanted = self._result.columns(summary), self._asked.outputs
        response = self._response({name: columns[name] for name in columns if not wanted or name in wanted})
        if summary.seed is not None:
            # As int64 where it fits, as all that we draw do: older clients know no other.
            seed = response.parameters["seed"]
            if summary.seed > _MOST_INT64:
                seed.uint64_param = summary.seed
            else:
                seed.int64_param = summary.seed
        return response

    def _response(self, columns: Columns) -> oip.ModelInferResponse:
        bundle = self._bundle
        response = oip.ModelInferResponse(model_name=bundle.name, model_version=str(bundle.version), id=self._id)
        write_outputs(response, columns, raw=self._asked.raw)
        return response


def failed(address: oip.ModelInferRequest, error: ServingError) -> oip.ModelStreamInferResponse:
    """The last response to a request that failed: its sentence, and the status that the call would have ended with.

    Args:
        address: what is repeated of the request: its model, version and id.
    """
    response = oip.ModelInferResponse(model_name=address.model_name, model_version=address.model_version, id=address.id)
    response.parameters["status"].string_param = status_code(error).name
    if isinstance(error, QueueFull):
        response.parameters["retry_after_seconds"].double_param = error.retry_after_seconds
    streamed = _streamed(response, final=True)
    streamed.error_message = str(error)
    return streamed


def _fits(tick: Tick, ticks: dict[int, Tick]) -> bool:
    """Whether a tick goes out along with others."""
    return tick_bytes(tick) * len(ticks) < _LARGE and tick.row not in ticks


def _streamed(response: oip.ModelInferResponse, *, final: bool) -> oip.ModelStreamInferResponse:
    response.parameters[FINAL].bool_param = final
    return oip.ModelStreamInferResponse(infer_response=response)
