"""What the server says of itself in `/metrics`, before and after: processor time and occupancy."""

import asyncio
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_CPU = "process_cpu_seconds_total"
_TICKS, _OCCUPANCY = "ctm_occupancy_ratio_count", "ctm_occupancy_ratio_sum"
_FETCH_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ServerSide:
    """Of the time between two looks."""

    cpu_seconds: float | None
    """Of the whole server process; None where its system does not tell."""
    occupancy: float | None
    """Mean over ticks; None when there was none."""


class ServerWatch:
    """Looks at the metrics of one model when told to."""

    def __init__(self, url: str, model: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"metrics must be an http address such as http://127.0.0.1:8080/metrics, got {url!r}")
        self._url, self._model = url, model
        self._looks: list[Mapping[str, float]] = []

    async def look(self) -> None:
        text = await asyncio.to_thread(self._fetch)
        self._looks.append(totals(text, self._model))

    def between(self) -> ServerSide:
        """Between the first look and the last."""
        first, last = self._looks[0], self._looks[-1]
        grown = {name: value - first.get(name, 0.0) for name, value in last.items()}
        ticks = grown.get(_TICKS, 0.0)
        return ServerSide(grown.get(_CPU), grown[_OCCUPANCY] / ticks if ticks else None)

    def _fetch(self) -> str:
        with urllib.request.urlopen(self._url, timeout=_FETCH_SECONDS) as response:
            text: str = response.read().decode()
        return text


def totals(text: str, model: str) -> dict[str, float]:
    """The process's samples and those of one model, over all its versions, by name."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in (_CPU, _TICKS, _OCCUPANCY) and sample.labels.get("model", model) == model:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
