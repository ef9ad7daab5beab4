"""An engine put together as its settings say; whoever runs it chooses thread and reports."""

import time

from serving.backends.base import Backend
from serving.engine import Engine
from serving.scheduler import Scheduler
from serving.settings import EngineConfig


def new_engine(backend: Backend, config: EngineConfig) -> Engine:
    """An engine without requests."""
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
