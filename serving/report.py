"""What one step of the engine did."""

from dataclasses import dataclass, field

from serving.errors import ServingError
from serving.events import Event
from serving.progress import Progress
from serving.request import Request
from serving.scheduler import Ended
from serving.waiting import Thought


@dataclass(slots=True)
class StepReport:
    """Events for callers, facts for metrics."""

    events: list[tuple[Request, Event]] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    admitted: list[Thought] = field(default_factory=list)
    first_ticks: list[Request] = field(default_factory=list)
    """Requests of which a row ticked for the first time."""
    finished: list[Progress] = field(default_factory=list)
    """Requests that ended with a summary."""
    failures: list[ServingError] = field(default_factory=list)
    num_ticked: int = 0
    num_running: int = 0
    num_waiting: int = 0
    encode_seconds: float | None = None
    tick_seconds: float | None = None
    finish_seconds: float | None = None
    now: float = 0.0
