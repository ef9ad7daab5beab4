"""What a caller of the Open Inference Protocol is told, as named columns of one value a row.

ticks --tick_columns--> row, tick, certainty ...        a stream's responses on the way
answer --answer_columns--> row, ticks_used ...
answers of all rows, summary --Result.columns--> prediction, certainty, ticks_used ...     the last, or only, response
"""

from collections.abc import Sequence

import numpy as np

from serving.bundle import Bundle
from serving.events import Answer, Leading, Summary, Tick
from serving.inference.tensors import TEXT, Columns
from serving.program import TensorSpec
from serving.request import Array
from serving.tensors import datatype

Outputs = dict[str, tuple[str, tuple[int, ...]]]
"""Datatype and one row's shape, by name."""

_NONE = -1
"""Stands where a row has no class, as NaN does where it has no number: it never ticked."""


def outputs_of(bundle: Bundle) -> Outputs:
    """What the last response to every request of this model can hold."""
    prediction, energy = bundle.program.prediction, bundle.program.energy
    found: Outputs = {prediction.name: (datatype(prediction.dtype), prediction.shape)}
    found |= {"certainty": ("FP32", ()), "ticks_used": ("INT64", ()), "answer_tick": ("INT64", ())}
    found |= {"stop_reason": (TEXT, ()), "abstained": ("BOOL", ())}
    if energy is not None:
        found["energy"] = ("FP32", ())
    if is_chain(bundle):
        found |= {"links": ("INT64", ()), "abstentions": ("INT64", ()), "chain_end": (TEXT, ())}
    if bundle.text is not None:
        found["text"] = (TEXT, ())
    if bundle.diffusion is not None:
        found |= dict.fromkeys(("image", "estimate"), ("FP32", bundle.diffusion.image.shape))
    return found


def is_chain(bundle: Bundle) -> bool:
    """Whether a row of this model may be several thoughts."""
    return bundle.text is not None or bundle.diffusion is not None


def tick_columns(ticks: Sequence[Tick], bundle: Bundle, *, predictions: bool) -> Columns:
    """Ticks of different rows, [n, ...] each.

    Args:
        predictions: whether they were asked for; chains may have them all the same.
    """
    columns: dict[str, Array | list[str]] = {"row": _whole([tick.row for tick in ticks])}
    if is_chain(bundle):
        columns["link"] = _whole([tick.link for tick in ticks])
    columns["tick"] = _whole([tick.tick for tick in ticks])
    columns["certainty"] = _real([tick.certainty for tick in ticks])
    if bundle.program.energy is not None:
        columns["energy"] = _real([tick.energy for tick in ticks])
    if predictions:
        _add_predictions(columns, [tick.prediction for tick in ticks], bundle.program.prediction)
    _add_leading(columns, [tick.leading for tick in ticks])
    for name in ticks[0].details:
        columns[name] = np.stack([tick.details[name] for tick in ticks])
    return columns


def answer_columns(answer: Answer, bundle: Bundle, *, predictions: bool) -> Columns:
    """One thought's answer, [1, ...] each."""
    columns: dict[str, Array | list[str]] = {"row": _whole([answer.row])}
    if is_chain(bundle):
        columns["link"] = _whole([answer.link])
    columns |= _shared_columns([answer], [answer.ticks_used], bundle, predictions=predictions)
    if is_chain(bundle):
        columns["chain_end"] = [answer.chain_end.name]
    if bundle.text is not None:
        columns["text"] = [answer.text]
    return columns | {name: values[None] for name, values in answer.outputs.items()}


class Result:
    """What the rows of one request have come to so far."""

    def __init__(self, bundle: Bundle, rows: int) -> None:
        self._bundle = bundle
        self._last: list[Answer | None] = [None] * rows
        self._ticks_used = [0] * rows

    def add(self, answer: Answer) -> None:
        """Take in the answer of a row's next thought."""
        self._last[answer.row] = answer
        self._ticks_used[answer.row] += answer.ticks_used

    def columns(self, summary: Summary) -> Columns:
        """All rows, [rows, ...] each: of chains the last answers, and the ticks of all links."""
        answers = [answer for answer in self._last if answer is not None]
        assert len(answers) == len(self._last), "every row of a request that did not fail has an answer"
        bundle = self._bundle
        columns = _shared_columns(answers, self._ticks_used, bundle, predictions=True)
        if is_chain(bundle):
            columns["links"] = _whole([answer.link + 1 for answer in answers])
            columns["abstentions"] = _whole(summary.abstentions)
            columns["chain_end"] = [answer.chain_end.name for answer in answers]
        if bundle.text is not None:
            columns["text"] = summary.texts
        return columns | summary.outputs


def _shared_columns(
    answers: Sequence[Answer], ticks_used: Sequence[int], bundle: Bundle, *, predictions: bool
) -> dict[str, Array | list[str]]:
    columns: dict[str, Array | list[str]] = {}
    if predictions:
        _add_predictions(columns, [answer.prediction for answer in answers], bundle.program.prediction)
    columns["certainty"] = _real([answer.certainty for answer in answers])
    columns["ticks_used"] = _whole(ticks_used)
    columns["answer_tick"] = _whole([answer.answer_tick for answer in answers])
    columns["stop_reason"] = [answer.stop_reason.name for answer in answers]
    columns["abstained"] = np.array([answer.abstained for answer in answers], np.bool_)
    if bundle.program.energy is not None:
        columns["energy"] = _real([answer.energy for answer in answers])
    _add_leading(columns, [answer.leading for answer in answers])
    return columns


def _add_predictions(
    columns: dict[str, Array | list[str]], predictions: Sequence[Array | None], spec: TensorSpec
) -> None:
    """Add the predictions, unless no row has one: a chain keeps them only where they are asked for."""
    if all(prediction is None for prediction in predictions):
        return
    none = np.full(spec.shape, np.nan, spec.dtype)
    columns[spec.name] = np.stack([none if prediction is None else prediction for prediction in predictions])


def _add_leading(columns: dict[str, Array | list[str]], leaders: Sequence[Leading | None]) -> None:
    """Add the best classes and their scores, [n, P, k], if any row has them; of one position without the P."""
    some = next((leading for leading in leaders if leading is not None), None)
    if some is None:
        return
    no_class, no_score = np.full_like(some.indices, _NONE), np.full_like(some.scores, np.nan)
    indices = np.stack([no_class if leading is None else leading.indices for leading in leaders])
    scores = np.stack([no_score if leading is None else leading.scores for leading in leaders])
    one = indices.shape[1] == 1
    columns["leading"] = indices[:, 0] if one else indices
    columns["leading_scores"] = scores[:, 0] if one else scores


def _whole(values: Sequence[int]) -> Array:
    return np.array(values, np.int64)


def _real(values: Sequence[float | None]) -> Array:
    return np.array([np.nan if value is None else value for value in values], np.float32)
