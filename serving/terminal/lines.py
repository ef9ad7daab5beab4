"""A thought as plain lines, for pipes, and as JSON lines, for scripts."""

import json
import time
from typing import Any

from serving.client import Answer, AsyncThinking, ClassScore, Event, Summary, Tick
from serving.terminal.board import Board, outcome
from serving.terminal.positions import best


async def show_lines(board: Board, thinking: AsyncThinking, *, in_json: bool) -> None:
    """Print every event as it arrives.

    Raises:
        ThinkError: the request failed.
    """
    async for event in thinking:
        seconds = board.record(event, time.monotonic())
        print(as_json(board, event, seconds) if in_json else plain(board, event), flush=True)


def plain(board: Board, event: Event) -> str:
    """One event as a line."""
    match event:
        case Tick():
            words = board.words(event.top)
            return f"{_name(board, event)}  tick {event.tick:2d}  certainty {event.certainty:.2f}  {words}"
        case Answer():
            label = "no answer" if event.label is None else f"answer {_label(board, event)}"
            abstained = ", abstained" if event.abstained else ""
            return f"{_name(board, event)}  {label}  certainty {event.certainty:.2f}  {outcome(event)}{abstained}"
        case Summary():
            return board.times()


def as_json(board: Board, event: Event, seconds: float) -> str:
    """One event as a line of JSON; `seconds` are from asking to its arrival."""
    return json.dumps(_fields(board, event) | {"seconds": round(seconds, 6)})


def _fields(board: Board, event: Event) -> dict[str, Any]:
    match event:
        case Tick():
            fields = {
                "event": "tick",
                "image": board.thoughts[event.row].image.name,
                "row": event.row,
                "tick": event.tick,
                "certainty": round(event.certainty, 6),
                **_prediction(board, event),
            }
            if event.energy is not None:
                fields["energy"] = event.energy
            if event.details:
                fields["details"] = {name: values.tolist() for name, values in event.details.items()}
            return fields
        case Answer():
            return {
                "event": "answer",
                "image": board.thoughts[event.row].image.name,
                "row": event.row,
                **({} if board.positions else {"label": event.label}),
                "certainty": round(event.certainty, 6),
                "stop_reason": event.stop_reason.name,
                "ticks_used": event.ticks_used,
                "answer_tick": event.answer_tick,
                "abstained": event.abstained,
                **_prediction(board, event),
            }
        case Summary():
            return {
                "event": "summary",
                "model": event.model,
                "version": event.version,
                "ticks_used": event.ticks_used,
                "abstain_mask": list(event.abstain_mask),
                "queue_seconds": round(event.queue_seconds, 6),
                "think_seconds": round(event.think_seconds, 6),
                "first_tick_seconds": board.first_tick_seconds and round(board.first_tick_seconds, 6),
            }


def _top(scores: tuple[ClassScore, ...]) -> list[dict[str, Any]]:
    return [{"index": one.index, "label": one.label, "score": round(one.score, 6)} for one in scores]


def _prediction(board: Board, event: Tick | Answer) -> dict[str, Any]:
    """The best classes; of several positions the best of each."""
    if not board.positions:
        return {"top": _top(event.top)}
    answers = best(event.top)
    return {"labels": [one.label for one in answers], "scores": [round(one.score, 6) for one in answers]}


def _label(board: Board, answer: Answer) -> str | None:
    return board.words(answer.top) if board.positions else answer.label


def _name(board: Board, event: Tick | Answer) -> str:
    """The row's name, as wide as the widest."""
    width = max(len(thought.image.name) for thought in board.thoughts)
    return board.thoughts[event.row].image.name.ljust(width)
