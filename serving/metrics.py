"""Every metric there is: names, units, buckets, and how the engine's facts become numbers.

The engine knows none of this; it hands over a `StepReport` for each step.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from serving.bundle import Bundle
from serving.diffusion.chain import DiffusionChain
from serving.diffusion.series import NOISE_RANGES, DiffusionSeries
from serving.engine import StepReport
from serving.errors import (
    REFUSALS,
    BackendFailed,
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    Refusal,
    ServingError,
    Unavailable,
    UnknownModel,
)
from serving.inference.statistics import Counts
from serving.request import StopReason
from serving.scheduler import Ended

_TICKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100)
_MANY_TICKS = (*_TICKS, 250, 500, 1000, 2500, 5000, 10000)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SHORT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_LINKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)

M = TypeVar("M", Counter, Gauge, Histogram)

_MODEL = ("model", "version")
_BY_ITSELF = (StopReason.CERTAIN, StopReason.ENERGY, StopReason.MODEL_DONE)
REASONS: dict[type[ServingError], str] = {
    InvalidRequest: "invalid",
    UnknownModel: "unknown_model",
    QueueFull: "queue_full",
    Unavailable: "unavailable",
    DeadlineExceeded: "deadline",
    BackendFailed: "backend_failed",
}
"""Why a request was refused or failed, as the label `reason` says it."""


class Metrics:
    """The metrics of one process, in the registry that is handed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def registered(metric: M) -> M:
            registry.register(_WithoutCreated(metric))
            return metric

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return registered(Counter(name, meaning, (*_MODEL, *labels), registry=None))

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return registered(Gauge(name, meaning, (*_MODEL, *labels), registry=None))

        def histogram(name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return registered(Histogram(name, meaning, (*_MODEL, *labels), buckets=buckets, registry=None))

        self.ticks_used = histogram(
            "ctm_ticks_used", "Ticks that a thought ran, by stop reason.", _TICKS, "stop_reason"
        )
        self.request_ticks = histogram(
            "ctm_request_ticks", "Ticks that a request ran, over all its rows and links.", _MANY_TICKS
        )
        self.chain_links = histogram("ctm_chain_links", "Answers that a row's chain came to; of chains alone.", _LINKS)
        self.ticks_saved = counter("ctm_ticks_saved_total", "Ticks of budget left when a thought stopped by itself.")
        self.ticks_wasted = counter(
            "ctm_ticks_wasted_total", "Ticks run for a caller that left or a request that failed."
        )
        self.thoughts = counter("ctm_thoughts_total", "Thoughts that ended, by stop reason.", "stop_reason")
        self.abstentions = counter("ctm_abstentions_total", "Answers that said they were not certain enough.")
        self.stop_certainty = histogram("ctm_stop_certainty", "Certainty of an answer.", _SHARES)
        self.think = histogram("ctm_think_seconds", "From a thought's admission to its answer.", _SECONDS)
        self.request = histogram("ctm_request_seconds", "From a request's arrival to its last answer.", _SECONDS)
        self.first_tick = histogram("ctm_first_tick_seconds", "From a request's arrival to its first tick.", _SECONDS)
        self.queue = histogram(
            "ctm_queue_seconds", "From a request's arrival, or the answer before, to a thought's admission.", _SECONDS
        )
        self.tick = histogram("ctm_tick_seconds", "One tick of all running thoughts.", _SHORT_SECONDS)
        self.encode = histogram("ctm_encode_seconds", "One encoding of the rows admitted together.", _SHORT_SECONDS)
        self.occupancy = histogram("ctm_occupancy_ratio", "Running thoughts over slots, at each tick.", _SHARES)
        self.running = gauge("ctm_thoughts_running", "Thoughts that hold a slot.")
        self.waiting = gauge("ctm_thoughts_waiting", "Thoughts that wait for a slot.")
        self.finish = histogram(
            "ctm_finish_seconds", "One reverse step of all rows whose thoughts ended.", _SHORT_SECONDS
        )
        self.reverse_steps = counter(
            "ctm_reverse_steps_total", "Reverse steps, by the noise they began with; of diffusion alone.", "noise"
        )
        self.base_steps = counter(
            "ctm_reverse_step_abstentions_total",
            "Reverse steps without the guidance of their thought, which was not certain enough, by noise.",
            "noise",
        )
        self.rejections = counter(
            "ctm_rejections_total", f"Requests refused or failed, by reason: {', '.join(REASONS.values())}.", "reason"
        )
        self.ticks_merged = counter(
            "ctm_ticks_merged_total", "Unsent ticks that a newer one replaced for a slow reader."
        )
        self.info = gauge("ctm_model_info", "1 for each model served.", "family", "task", "backend", "ticks")
        refused = registered(
            Counter(
                "ctm_bundles_refused_total",
                f"Bundles of the store that must not serve, by reason: {', '.join(REFUSALS)}.",
                ("reason",),
                registry=None,
            )
        )
        self.bundles_refused = {reason: refused.labels(reason) for reason in REFUSALS}
        self._models: dict[tuple[str, int], _Model] = {}

    def observe(self, model: str, version: int, report: StepReport, running: int, waiting: int, num_slots: int) -> None:
        """Count what one step did. It runs for every tick."""
        self._model(model, version).observe(report, running, waiting, num_slots)

    def rejected(self, model: str, version: int, error: ServingError) -> None:
        """Count a request that was refused before it reached the engine, whose own failures stand in its reports.

        A model that is not served (the one called "", version 0, stands for them all) gets this one series.
        """
        self.rejections.labels(model, str(version), _reason(error)).inc()
        if model:
            self.counts(model, version).refuse()

    def counts(self, model: str, version: int) -> Counts:
        """The same facts, as the Open Inference Protocol tells them."""
        return self._model(model, version).counts

    def merged(self, model: str, version: int, ticks: int) -> None:
        """Count ticks that a newer one replaced for a slow reader."""
        self._model(model, version).ticks_merged.inc(ticks)

    def refused(self, reason: Refusal) -> None:
        """Count a bundle that must not be served, once for what its files are."""
        self.bundles_refused[reason].inc()

    def model_info(self, bundle: Bundle, backend: str) -> None:
        """Say that a model is served from now on; its other series begin at 0."""
        manifest = bundle.manifest
        series = self._model(bundle.name, bundle.version)
        if bundle.text is not None or bundle.diffusion is not None:
            series.chain_links()
        if bundle.diffusion is not None:
            series.diffusion()
        series.child(self.info, manifest.family, manifest.task, backend, str(manifest.ticks)).set(1)

    def forget(self, model: str, version: int) -> None:
        """Drop every series of a model that is no longer served."""
        if (series := self._models.pop((model, version), None)) is not None:
            series.remove()

    def _model(self, model: str, version: int) -> "_Model":
        found = self._models.get((model, version))
        if found is None:
            found = self._models[model, version] = _Model(self, model, str(version))
        return found


class _Model:
    """One model's series, looked up once: finding a labelled child costs more than counting on it."""

    def __init__(self, metrics: Metrics, *names: str) -> None:
        self._metrics, self._names = metrics, names
        self._chain_links: Histogram | None = None
        self._diffusion: DiffusionSeries | None = None
        self._children: list[tuple[MetricWrapperBase, tuple[str, ...]]] = []
        self.counts = Counts()
        self.ticks_used = {reason: self.child(metrics.ticks_used, reason.name) for reason in StopReason}
        self.thoughts = {reason: self.child(metrics.thoughts, reason.name) for reason in StopReason}
        self.rejections = {reason: self.child(metrics.rejections, reason) for reason in REASONS.values()}
        self.request_ticks = self.child(metrics.request_ticks)
        self.ticks_saved = self.child(metrics.ticks_saved)
        self.ticks_wasted = self.child(metrics.ticks_wasted)
        self.abstentions = self.child(metrics.abstentions)
        self.stop_certainty = self.child(metrics.stop_certainty)
        self.think = self.child(metrics.think)
        self.request = self.child(metrics.request)
        self.first_tick = self.child(metrics.first_tick)
        self.queue = self.child(metrics.queue)
        self.tick = self.child(metrics.tick)
        self.encode = self.child(metrics.encode)
        self.occupancy = self.child(metrics.occupancy)
        self.running = self.child(metrics.running)
        self.waiting = self.child(metrics.waiting)
        self.ticks_merged = self.child(metrics.ticks_merged)

    def child(self, metric: M, *labels: str) -> M:
        """The series of this model and these labels besides."""
        self._children.append((metric, (*self._names, *labels)))
        return metric.labels(*self._names, *labels)

    def remove(self) -> None:
        for metric, labels in self._children:
            metric.remove(*labels)

    def observe(self, report: StepReport, running: int, waiting: int, num_slots: int) -> None:
        self.counts.observe(report)
        self.running.set(running)
        self.waiting.set(waiting)
        if report.encode_seconds is not None:
            self.encode.observe(report.encode_seconds)
        if report.tick_seconds is not None:
            self.tick.observe(report.tick_seconds)
            self.occupancy.observe(report.num_ticked / num_slots)
        if report.finish_seconds is not None:
            self.diffusion().finish.observe(report.finish_seconds)
        for thought in report.admitted:
            self.queue.observe(thought.queue_seconds)
        for request in report.first_ticks:
            self.first_tick.observe(max(0.0, report.now - request.arrival))
        for ended in report.ended:
            self._end(ended, report.now)
        for progress in report.finished:
            self.request_ticks.observe(progress.ticks_used)
            self.request.observe(max(0.0, report.now - progress.request.arrival))
            if progress.request.chain is not None:
                self._count_links(progress.links)
        for error in report.failures:
            self.rejections[_reason(error)].inc()

    def diffusion(self) -> "DiffusionSeries":
        """The series that diffusion models alone have."""
        if self._diffusion is None:
            metrics = self._metrics
            self._diffusion = DiffusionSeries(
                self.child(metrics.finish),
                [self.child(metrics.reverse_steps, noise) for noise in NOISE_RANGES],
                [self.child(metrics.base_steps, noise) for noise in NOISE_RANGES],
            )
        return self._diffusion

    def chain_links(self) -> Histogram:
        """The series that models of chains alone have; begun with the model, so that a rate sees its first chain."""
        if self._chain_links is None:
            self._chain_links = self.child(self._metrics.chain_links)
        return self._chain_links

    def _count_links(self, rows: list[int]) -> None:
        for links in rows:
            self.chain_links().observe(links)

    def _end(self, ended: Ended, now: float) -> None:
        thought, reason = ended.thought, ended.reason
        self.thoughts[reason].inc()
        if thought.link and not thought.admitted:  # nobody is answered: the chain ended with the link before
            return
        if ended.ticks_used:  # one that never ran says nothing about how long thoughts think
            self.ticks_used[reason].observe(ended.ticks_used)
        if reason is StopReason.CANCELLED:
            self.ticks_wasted.inc(ended.ticks_used)
            return
        if thought.admitted:
            self.think.observe(max(0.0, now - thought.admission_time))
        if ended.answer_tick:
            self.stop_certainty.observe(ended.certainty)
        if ended.abstained:
            self.abstentions.inc()
        if isinstance(thought.request.chain, DiffusionChain):
            self.diffusion().count(ended, thought.request.chain)
        if reason in _BY_ITSELF:
            self.ticks_saved.inc(thought.request.stop.max_ticks - ended.ticks_used)


class _WithoutCreated(Collector):
    """A metric without its `_created` series, the times at which they began: nobody reads them.

    `prometheus_client.disable_created_metrics` would take them from every other registry of the process as well.
    """

    def __init__(self, metric: MetricWrapperBase) -> None:
        self._metric = metric

    def describe(self) -> list[Metric]:
        return list(self._metric.describe())

    def collect(self) -> Iterator[Metric]:
        for family in self._metric.collect():
            family.samples = [sample for sample in family.samples if sample.name != f"{family.name}_created"]
            yield family


def _reason(error: ServingError) -> str:
    return next((REASONS[kind] for kind in type(error).__mro__ if kind in REASONS), REASONS[BackendFailed])


def metrics_table() -> str:
    """All metrics as a table in Markdown, for the README."""
    registry = CollectorRegistry()
    Metrics(registry)
    lines = ["| metric | kind | meaning |", "|---|---|---|"]
    for family in registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        lines.append(f"| `{name}` | {family.type} | {family.documentation} |")
    return "\n".join(lines) + "\n"
