"""What TorchServe and Think answer, each in one plain form that can be compared; for tests."""

import base64
import json
from typing import Any

import numpy as np

from serving.client import Result


def tensor(name: str, values: np.ndarray[Any, Any], datatype: str) -> dict[str, Any]:
    data = base64.b64encode(values.tobytes()).decode()
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": data}


def image(values: np.ndarray[Any, Any], **fields: Any) -> dict[str, Any]:
    return {"inputs": [tensor("image", values, "FP32")], **fields}


def array(document: dict[str, Any]) -> np.ndarray[Any, Any]:
    """A tensor of a reply."""
    kind = {"FP32": np.float32, "INT64": np.int64}[document["datatype"]]
    return np.frombuffer(base64.b64decode(document["data"]), kind).reshape([int(size) for size in document["shape"]])


def expected(result: Result) -> list[tuple[Any, ...]]:
    """What Think answered, link by link."""
    return [
        (
            *(one.row, one.link, one.ticks_used, one.answer_tick, one.stop_reason.name, one.abstained, one.text),
            *(None if one.prediction is None else one.prediction.tolist(), np.float32(one.certainty)),
        )
        for links in result.links
        for one in links
    ]


def answered(answers: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The same of what TorchServe answered."""
    names = ("row", "link", "ticks_used", "answer_tick", "stop_reason", "abstained", "text")
    return [
        (
            *(one[name] for name in names),
            *(array(one["prediction"]).tolist() if "prediction" in one else None, np.float32(one["certainty"])),
        )
        for one in answers
    ]


def events(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def ticks(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    found = [tick for event in events if "ticks" in event for tick in event["ticks"]["ticks"]]
    return [(tick["tick"], np.float32(tick["certainty"]), tick["top"][0]["label"]) for tick in found]


def answers(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event["answer"] for event in events if "answer" in event]
