"""What TorchServe's metrics endpoint says of thoughts: the server's own names, as far as TorchServe has such metrics.

TorchServe reads each observation as a line of the worker's log, and its histograms have Prometheus' default buckets.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from protos import ctm_serving_pb2 as pb
from serving.errors import ServingError
from serving.report import StepReport
from serving.request import StopReason
from serving.scheduler import Ended
from serving.status import code

_BY_ITSELF = (StopReason.CERTAIN, StopReason.ENERGY, StopReason.MODEL_DONE)


@dataclass(frozen=True, slots=True)
class Meter:
    """How a metric is declared to TorchServe."""

    kind: str
    """counter or histogram."""
    unit: str
    labels: tuple[str, ...] = ()
    """Beside the model's name."""


METERS: Mapping[str, Meter] = {
    "ctm_ticks_used": Meter("histogram", "count", ("stop_reason",)),
    "ctm_stop_certainty": Meter("histogram", "count"),
    "ctm_think_seconds": Meter("histogram", "seconds"),
    "ctm_first_tick_seconds": Meter("histogram", "seconds"),
    "ctm_request_ticks": Meter("histogram", "count"),
    "ctm_thoughts_total": Meter("counter", "count", ("stop_reason",)),
    "ctm_abstentions_total": Meter("counter", "count"),
    "ctm_ticks_saved_total": Meter("counter", "count"),
    "ctm_rejections_total": Meter("counter", "count", ("code",)),
}
_MODEL = ("ModelName", "Level")  # TorchServe's own labels


def declarations() -> dict[str, list[dict[str, object]]]:
    """The metrics as the section `model_metrics` of TorchServe's metrics file has them."""
    found: dict[str, list[dict[str, object]]] = {}
    for name, meter in METERS.items():
        entry: dict[str, object] = {"name": name, "unit": meter.unit, "dimensions": [*_MODEL, *meter.labels]}
        found.setdefault(meter.kind, []).append(entry)
    return found


class Meters:
    """Counts what a batch did.

    Args:
        find: TorchServe's metric of that name and kind.
        model: as TorchServe calls it.
    """

    def __init__(self, find: Callable[[str, str], Any], model: str) -> None:
        self._metrics = {name: find(name, meter.kind) for name, meter in METERS.items()}
        self._labels = (model, "Model")
        self._counts: Counter[tuple[str, ...]] = Counter()

    def observe(self, report: StepReport) -> None:
        """Count what one step did."""
        for request in report.first_ticks:
            self._add("ctm_first_tick_seconds", max(0.0, report.now - request.arrival))
        for ended in report.ended:
            self._end(ended, report.now)
        for progress in report.finished:
            self._add("ctm_request_ticks", progress.ticks_used)
        for error in report.failures:
            self.rejected(error)

    def rejected(self, error: ServingError) -> None:
        """Count a request that was refused or failed."""
        self._counts["ctm_rejections_total", pb.Code.Name(code(error))] += 1

    def write(self) -> None:
        """Hand over the counters: once a batch, as each costs a line."""
        counts, self._counts = self._counts, Counter()
        for (name, *labels), count in counts.items():
            self._add(name, count, *labels)

    def _end(self, ended: Ended, now: float) -> None:
        thought, reason = ended.thought, ended.reason
        self._counts["ctm_thoughts_total", reason.name] += 1
        if ended.ticks_used:
            self._add("ctm_ticks_used", ended.ticks_used, reason.name)
        if reason is StopReason.CANCELLED or (thought.link and not thought.admitted):  # nobody is answered
            return
        if thought.admitted:
            self._add("ctm_think_seconds", max(0.0, now - thought.admission_time))
        if ended.answer_tick:
            self._add("ctm_stop_certainty", ended.certainty)
        self._counts["ctm_abstentions_total",] += ended.abstained
        if reason in _BY_ITSELF:
            self._counts["ctm_ticks_saved_total",] += thought.request.stop.max_ticks - ended.ticks_used

    def _add(self, name: str, value: float, *labels: str) -> None:
        self._metrics[name].add_or_update(round(value, 6), [*self._labels, *labels])
