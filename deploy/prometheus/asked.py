"""Ask a Prometheus: what it knows now, what it knew over a while, how its rules fare."""

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SECONDS = 60.0
_NOT_TAKEN = (400, 422)  # what cannot be parsed, what cannot be worked out


@dataclass(frozen=True, slots=True)
class Series:
    """One line of an answer."""

    labels: dict[str, str]
    times: Array
    """Seconds since 1970."""
    values: Array
    """May be NaN: a quantile of nothing."""


class Prometheus:
    """One that listens at `url`.

    Whatever is asked raises ValueError, with Prometheus's own words, when it does not take the expression; OSError when
    it does not answer, or not yet.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def ready(self) -> bool:
        """Whether it answers questions."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=_SECONDS):
                return True
        except OSError:
            return False

    def now(self, expression: str, *, at: float | None = None) -> list[Series]:
        """Its value now, or at another time."""
        asked = {"query": expression} | ({} if at is None else {"time": repr(at)})
        return [_series(entry["metric"], [entry["value"]]) for entry in self._get("query", asked)["result"]]

    def by(self, label: str, expression: str, *, at: float | None = None) -> dict[str, float]:
        """Its values now, by one label."""
        return {series.labels.get(label, ""): float(series.values[0]) for series in self.now(expression, at=at)}

    def over(self, expression: str, *, start: float, end: float, step: float) -> list[Series]:
        """Its values over a while, one every `step` seconds."""
        asked = {"query": expression, "start": repr(start), "end": repr(end), "step": repr(step)}
        return [_series(entry["metric"], entry["values"]) for entry in self._get("query_range", asked)["result"]]

    def rules(self) -> list[dict[str, Any]]:
        """All rules, with their health and when they were last evaluated."""
        return [rule for group in self._get("rules", {})["groups"] for rule in group["rules"]]

    def _get(self, path: str, asked: dict[str, str]) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            if error.code not in _NOT_TAKEN:
                raise
            with error:
                raise ValueError(f"{asked.get('query', path)}: {error.read().decode(errors='replace')}") from None


def _series(labels: dict[str, str], points: list[tuple[float, str]]) -> Series:
    times, values = zip(*points, strict=True)
    return Series(labels, np.array(times, float), np.array([float(value) for value in values]))
