"""Images that come out of noise as plain lines, for pipes, and with their pixels as JSON lines, for scripts."""

import json
import time
from typing import Any

import numpy as np

from serving.client import Answer, AsyncThinking, Event, Summary
from serving.request import Array
from serving.terminal.board import outcome
from serving.terminal.sheet import Sheet


async def show_sheet_lines(sheet: Sheet, drawing: AsyncThinking, *, in_json: bool) -> None:
    """Print a line for each link as it arrives, and one for the whole.

    Raises:
        ThinkError: the request failed.
    """
    async for event in drawing:
        seconds = sheet.record(event, time.monotonic())
        if line := as_json(sheet, event, seconds) if in_json else plain(sheet, event):
            print(line, flush=True)


def plain(sheet: Sheet, event: Event) -> str:
    """One event as a line: `7[0]  step  3/20  certainty 0.71  certain at tick 5, abstained`."""
    match event:
        case Answer():
            names = [f"{row.name}[{index}]" for index, row in enumerate(sheet.rows)]
            name = names[event.row].ljust(max(map(len, names)))
            step = f"step {event.link + 1:{len(str(sheet.steps))}d}/{sheet.steps}"
            abstained = ", abstained" if event.abstained else ""
            return f"{name}  {step}  certainty {event.certainty:.2f}  {outcome(event)}{abstained}"
        case Summary():
            return sheet.last_line()
        case _:
            return ""


def as_json(sheet: Sheet, event: Event, seconds: float) -> str:
    """One event as a line of JSON; `seconds` are from asking to its arrival."""
    fields = _fields(sheet, event)
    return json.dumps(fields | {"seconds": round(seconds, 6)}) if fields else ""


def _fields(sheet: Sheet, event: Event) -> dict[str, Any]:
    match event:
        case Answer():
            return {
                "event": "answer",
                "row": event.row,
                "class": sheet.rows[event.row].name,
                "link": event.link,
                "certainty": round(event.certainty, 6),
                "stop_reason": event.stop_reason.name,
                "ticks_used": event.ticks_used,
                "answer_tick": event.answer_tick,
                "abstained": event.abstained,
                "chain_end": event.chain_end.name if event.chain_end else None,
                **{name: _values(values) for name, values in event.outputs.items()},
            }
        case Summary():
            return {
                "event": "summary",
                "model": event.model,
                "version": event.version,
                "seed": event.seed,
                "ticks_used": event.ticks_used,
                "abstentions": list(event.abstentions),
                "abstain_mask": list(event.abstain_mask),
                "queue_seconds": round(event.queue_seconds, 6),
                "think_seconds": round(event.think_seconds, 6),
            }
        case _:
            return {}


def _values(values: Array) -> Any:
    """Nested lists, of numbers that are exact enough for pixels."""
    return (values.astype(np.float64).round(4) if values.dtype.kind == "f" else values).tolist()
