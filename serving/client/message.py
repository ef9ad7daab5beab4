"""What a client may ask for, and the message that says so."""

from collections.abc import Iterable, Mapping
from typing import TypedDict, cast

import numpy as np
from numpy.typing import ArrayLike

from protos import ctm_serving_pb2 as pb
from serving.request import AnswerRule, StopReason
from serving.tensors import tensor_message

LAST_WORD_SECONDS = 0.5
"""A call outlives its timeout by this, so that an answer given in the last moment still arrives."""


# Every one may be left out, or be None: the model's default.
class AnswerOptions(TypedDict, total=False):
    """How to think, and when to stop."""

    version: int
    """0: the newest served."""
    threshold: float | None
    """Stop at this certainty, in [0, 1], inclusive."""
    min_ticks: int | None
    max_ticks: int | None
    patience: int | None
    """Be certain only when the top prediction also stayed the same over this many ticks."""
    energy_threshold: float | None
    energy_delta: float | None
    disabled: Iterable[StopReason]
    """Any of CERTAIN, ENERGY, MODEL_DONE: rules that shall not stop a thought."""
    answer_rule: AnswerRule | None
    abstain_below: float | None
    """Mark answers less certain than this, in [0, 1], as abstained."""
    top_k: int
    """Name this many of the best classes; 0 for none."""
    priority: int
    """Larger is admitted first."""
    timeout: float | None
    """Seconds. When they are nearly over, the best answer so far arrives; without any it is `DeadlineExceeded`."""
    request_id: str | None
    """Stands in every log line of the server."""


class ThinkOptions(AnswerOptions, total=False):
    """Also, what to see while it thinks."""

    every: int | None
    """Send every n-th tick; 0: answers only; None: each."""
    predictions: bool
    """Send the whole prediction with each tick."""
    details: Iterable[str]
    """Names of the model's details (see its manifest) to send with each tick."""


def answer_options(options: AnswerOptions) -> ThinkOptions:
    """To see the answers only, each with its best class unless more or fewer are wished."""
    return cast(ThinkOptions, {"top_k": 1, **options, "every": 0})


def request_message(
    model: str,
    inputs: Mapping[str, ArrayLike],
    *,
    version: int = 0,
    threshold: float | None = None,
    min_ticks: int | None = None,
    max_ticks: int | None = None,
    patience: int | None = None,
    energy_threshold: float | None = None,
    energy_delta: float | None = None,
    disabled: Iterable[StopReason] = (),
    answer_rule: AnswerRule | None = None,
    abstain_below: float | None = None,
    top_k: int = 0,
    priority: int = 0,
    timeout: float | None = None,
    request_id: str | None = None,
    every: int | None = None,
    predictions: bool = False,
    details: Iterable[str] = (),
) -> pb.ThinkRequest:
    """A request for the rows of `inputs`, each [rows, ...] in the model's datatype (an image is mostly float32).

    Raises:
        ValueError: a number does not fit its field, or an array's dtype has no name on the wire.
        TypeError: an option of the wrong type.
    """
    return pb.ThinkRequest(
        request_id=request_id or "",
        model=model,
        version=version,
        inputs=[tensor_message(name, np.asarray(values)) for name, values in inputs.items()],
        stop=pb.StopPolicy(
            certainty_threshold=threshold,
            min_ticks=min_ticks,
            max_ticks=max_ticks,
            patience=patience,
            energy_threshold=energy_threshold,
            energy_delta=energy_delta,
            disabled=[pb.StopReason.ValueType(reason) for reason in disabled],
        ),
        answer_rule=pb.AnswerRule.ValueType(answer_rule or 0),
        abstain_below=abstain_below,
        stream=pb.StreamPolicy(every=every, predictions=predictions, top_k=top_k, details=details),
        priority=priority,
        timeout_seconds=timeout,
    )
