"""A batch of requests through the engine: all their rows share its slots, and one that comes free is given on at once.

requests -> engine.submit, engine.step ... -> a report of each step, until every request has ended
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from serving.backends.base import Backend
from serving.engine import Engine, StepReport
from serving.errors import ServingError
from serving.events import Answer, Failure
from serving.request import Request
from serving.scheduler import Scheduler
from serving.settings import EngineConfig


def new_engine(backend: Backend, config: EngineConfig) -> Engine:
    """An engine without requests. A batch has one of its own, so that nothing of one batch can reach the next."""
    scheduler = Scheduler(
        num_slots=config.num_slots,
        max_waiting=config.max_waiting,
        admissions_per_plan=config.encode_rows_per_step,
        positions=backend.program.positions,
    )
    return Engine(
        backend,
        scheduler,
        clock=time.monotonic,
        deadline_margin_seconds=config.deadline_margin_seconds,
        chain_ahead=config.chain_ahead,
    )


def think(engine: Engine, requests: Sequence[Request]) -> Iterator[StepReport]:
    """Run until every request has ended. What the engine has no room for fails alone, in the first report."""
    refused = StepReport()
    for request in requests:
        try:
            engine.submit(request)
        except ServingError as error:
            refused.events.append((request, Failure(error)))
            refused.failures.append(error)
    if refused.events:
        yield refused
    while engine.num_requests:
        report = StepReport()
        engine.step(report)
        # Whoever is given a report has read it: no chain waits for its reader.
        answers = Counter(request for request, event in report.events if isinstance(event, Answer))
        for request, count in answers.items():
            engine.read(request, count)
        yield report
