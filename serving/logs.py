"""Structured logs on standard error: for people, or one JSON object a line.

Every module logs with the standard library (`log.info("model ready", extra={"model": ...})`); what stands in `extra`
becomes fields. A request's id is in `request_id` or `request_ids`.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Route every logger of the process here, those of libraries included.

    Args:
        level: `debug`, `info`, `warning` or `error`; libraries say nothing below a warning unless it is `debug`.
        form: `console` or `json`.
        stream: standard error, unless a test wants to read along.
    """
    stream = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    end: list[Processor]
    if form == "json":
        end = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        end = [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *end],
        )
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number if level == "debug" else max(number, logging.WARNING))
    logging.getLogger("serving").setLevel(number)
    logging.captureWarnings(True)
