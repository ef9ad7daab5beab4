"""What a dashboard asks of Prometheus, read from the JSON that Grafana reads, with its variables filled in."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DASHBOARDS = tuple(sorted((Path(__file__).resolve().parent / "dashboards").glob("*.json")))


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One expression, without variables."""

    expression: str
    legend: str
    """What its series are called: {{model}} stands for their label."""

    def name(self, labels: dict[str, str]) -> str:
        """What the series with these labels is called."""
        return re.sub(r"{{(\w+)}}", lambda place: labels.get(place[1], ""), self.legend).strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """What a place on the dashboard shows."""

    row: str
    title: str
    kind: str
    """timeseries, heatmap or stat."""
    unit: str
    logarithmic: bool
    stacked: bool
    place: tuple[int, int, int, int]
    """x, y, width, height, in twenty-fourths of the width and Grafana's lines."""
    queries: tuple[Query, ...]


def panels(path: Path, *, models: Sequence[str], window: str) -> list[Panel]:
    """Its panels from the top; one that repeats is there once for each model, at the same place.

    Args:
        models: all that are chosen.
        window: what `$__rate_interval` stands for, such as 5m.
    """
    found: list[Panel] = []
    row = ""
    for panel in json.loads(path.read_text())["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        chosen = models if panel.get("repeat") == "model" else [".*"]
        custom = panel["fieldConfig"]["defaults"].get("custom", {}) if "fieldConfig" in panel else {}
        where = panel["gridPos"]
        for model in chosen:

            def filled(text: str, model: str = model) -> str:
                return text.replace("$model", model).replace("$__rate_interval", window)

            found.append(
                Panel(
                    row=row,
                    title=filled(panel["title"]),
                    kind=panel["type"],
                    unit=_unit(panel),
                    logarithmic=custom.get("scaleDistribution", {}).get("type") == "log",
                    stacked=custom.get("stacking", {}).get("mode") == "normal",
                    place=(where["x"], where["y"], where["w"], where["h"]),
                    queries=tuple(
                        Query(expression=filled(target["expr"]), legend=target["legendFormat"])
                        for target in panel["targets"]
                    ),
                )
            )
    return found


def _unit(panel: dict[str, object]) -> str:
    match panel:
        case {"options": {"yAxis": {"unit": str(unit)}}}:
            return unit
        case {"fieldConfig": {"defaults": {"unit": str(unit)}}}:
            return unit
    return "short"
