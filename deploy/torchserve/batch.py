"""A batch of requests through the engine: all their rows share its slots, and one that comes free is given on at once.

requests -> engine.submit, engine.step ... -> a report of each step, until every request has ended
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from serving.engine import Engine, StepReport
from serving.errors import ServingError
from serving.events import Answer, Failure
from serving.request import Request


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
