"""What one model's engine has done since it began, as the Open Inference Protocol counts it; fed by every step."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from protos import open_inference_pb2 as oip
from serving.events import Failure
from serving.progress import Progress
from serving.report import StepReport


@dataclass(slots=True)
class _Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def write(self, message: oip.StatisticDuration) -> None:
        message.count, message.ns = self.count, round(self.seconds * 1e9)


class Counts:
    """Counts requests of both services; one that its caller left is neither answered nor failed.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last_request = 0.0
        self._rows = 0
        self._success, self._fail = _Duration(), _Duration()
        self._queue, self._encode, self._think = _Duration(), _Duration(), _Duration()
        self._ticks: dict[int, _Duration] = {}  # by the number of thoughts that ticked together

    def observe(self, report: StepReport) -> None:
        """Count what one step did. It runs for every tick."""
        if report.tick_seconds is not None:
            ticks = self._ticks.get(report.num_ticked)
            if ticks is None:
                ticks = self._ticks[report.num_ticked] = _Duration()
            ticks.add(report.tick_seconds)
        for progress in report.finished:
            self._answer(progress, report.now)
        if report.failures:
            for request, event in report.events:
                if isinstance(event, Failure):
                    self._refuse(max(0.0, report.now - request.arrival))

    def refuse(self) -> None:
        """Count a request that never came to the engine."""
        self._refuse(0.0)

    def message(self, name: str, version: int) -> oip.ModelStatistics:
        """The counts, under the model's name."""
        message = oip.ModelStatistics(
            name=name,
            version=str(version),
            last_inference=round(self._last_request * 1e3),
            inference_count=self._rows,
            execution_count=sum(ticks.count for ticks in self._ticks.values()),
        )
        requests = message.inference_stats
        self._success.write(requests.success)
        self._fail.write(requests.fail)
        self._queue.write(requests.queue)
        self._encode.write(requests.compute_input)
        self._think.write(requests.compute_infer)
        requests.compute_output.count = self._success.count
        for size, ticks in sorted(self._ticks.items()):
            ticks.write(message.batch_stats.add(batch_size=size).compute_infer)
        return message

    def _answer(self, progress: Progress, now: float) -> None:
        self._last_request = self._clock()
        self._rows += progress.request.rows
        self._success.add(max(0.0, now - progress.request.arrival))
        self._queue.add(progress.queue_seconds)
        self._encode.add(progress.encode_seconds)
        self._think.add(max(0.0, progress.think_seconds(now) - progress.encode_seconds))

    def _refuse(self, seconds: float) -> None:
        self._last_request = self._clock()
        self._fail.add(seconds)
