"""Draw a dashboard without Grafana: what its panels ask of Prometheus, drawn with matplotlib.

    python -m deploy.grafana.draw thoughts --prometheus http://127.0.0.1:9090 --minutes 30 --output thoughts.png

It is a likeness, of the same numbers at the same places: no colours, legends or axes are Grafana's.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from deploy.grafana.read import DASHBOARDS, Panel, panels
from deploy.prometheus.asked import Array, Prometheus, Series

_POINTS = 120
_WIDTH_INCHES = 16.0
_LINE_INCHES = 0.36  # the height of one of Grafana's lines
_MOST_NAMES = 12
_FLOOR_SECONDS = 1e-4


def draw(
    path: Path, asked: Prometheus, *, end: float, minutes: float, rows: Sequence[str] = (), window: str = "1m"
) -> Figure:
    """A figure of one dashboard.

    Args:
        end: seconds since 1970.
        rows: titles of those that are drawn; none means all.
        window: over how long rates are taken.
    """
    models = sorted(series.labels["model"] for series in asked.now("count by (model) (ctm_model_info)", at=end))
    drawn = [panel for panel in panels(path, models=models, window=window) if not rows or panel.row in rows]
    if not drawn:
        raise ValueError(f"{path.stem} has no row {' or '.join(rows)}")
    places = _places(drawn)
    height = max(y + h for _, y, _, h in places)
    figure = Figure(figsize=(_WIDTH_INCHES, height * _LINE_INCHES), facecolor="white")
    FigureCanvasAgg(figure)
    span = _Span(end=end, minutes=minutes)
    for panel, (x, y, w, h) in zip(drawn, places, strict=True):
        left, bottom = (x + 0.9) / 24, 1 - (y + h - 0.9) / height
        axes = figure.add_axes((left, bottom, (w - 1.3) / 24, (h - 2) / height))
        axes.set_title(panel.title, fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        if panel.kind == "stat":
            _numbers(axes, panel, asked, end)
            continue
        if panel.kind == "heatmap":
            _heat_map(axes, panel, asked, span)
        else:
            _lines(axes, panel, asked, span)
        axes.set_xlim(-minutes, 0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ago, _: f"{ago:g} min" if ago else "now"))
    return figure


def _places(drawn: Sequence[Panel]) -> list[tuple[float, float, float, float]]:
    """Where panels go, in Grafana's units: packed upwards, and those that repeat side by side."""
    heights = {y: h for _, y, _, h in (panel.place for panel in drawn)}
    tops = {y: sum(heights[above] for above in heights if above < y) for y in heights}
    together: dict[tuple[int, ...], list[Panel]] = {}
    for panel in drawn:
        together.setdefault(panel.place, []).append(panel)
    found = []
    for panel in drawn:
        x, y, w, h = panel.place
        share = w / len(together[panel.place])
        found.append((x + share * together[panel.place].index(panel), float(tops[y]), share, float(h)))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Span:
    """The while that is drawn."""

    end: float
    minutes: float

    def series(self, asked: Prometheus, expression: str) -> list[Series]:
        start, step = self.end - 60 * self.minutes, 60 * self.minutes / _POINTS
        return asked.over(expression, start=start, end=self.end, step=step)

    def ago(self, times: Array) -> Array:
        """Minutes, below 0: how long before the end."""
        return (times - self.end) / 60


def _lines(axes: Axes, panel: Panel, asked: Prometheus, span: _Span) -> None:
    shown = [
        (query.name(series.labels), series)
        for query in panel.queries
        for series in span.series(asked, query.expression)
        if np.isfinite(series.values).any()
    ]
    shown.sort(key=lambda pair: pair[0])
    base = np.zeros(_POINTS + 1)
    for place, (name, series) in enumerate(shown):
        colour = colormaps["tab20"](place % 20)
        if panel.stacked:
            grid = np.linspace(-span.minutes, 0, _POINTS + 1)
            top = base + np.interp(grid, span.ago(series.times), np.nan_to_num(series.values), left=0, right=0)
            axes.fill_between(grid, base, top, label=name, color=colour, alpha=0.7, linewidth=0)
            base = top
        else:
            axes.plot(span.ago(series.times), series.values, label=name, linewidth=1.2, color=colour)
    if panel.logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _said(value, panel.unit)))
    axes.grid(alpha=0.25)
    if any(name for name, _ in shown):
        columns = 1 if len(shown) <= _MOST_NAMES else 2
        axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, ncols=columns)
        box = axes.get_position()
        axes.set_position((box.x0, box.y0, box.width * (0.78 if columns == 1 else 0.62), box.height))


def _heat_map(axes: Axes, panel: Panel, asked: Prometheus, span: _Span) -> None:
    """Buckets are cumulative: a cell is what a bucket has more than the one below."""
    (query,) = panel.queries
    found = sorted(span.series(asked, query.expression), key=lambda series: float(series.labels["le"]))
    if not found:
        return
    grid = np.unique(np.concatenate([series.times for series in found]))
    counts = np.array([np.interp(grid, series.times, series.values) for series in found])
    cells = np.diff(counts, axis=0, prepend=0).clip(min=0)
    cells[cells < 1e-9] = np.nan
    filled = np.flatnonzero(np.isfinite(cells).any(axis=1))
    if not filled.size:
        return
    low, high = filled[0], filled[-1]
    rows = np.arange(low, high + 1)
    axes.pcolormesh(span.ago(grid), rows, cells[low : high + 1], cmap="viridis", norm=PowerNorm(0.5), shading="nearest")
    labels = [f"≤ {_said(float(series.labels['le']), panel.unit)}" for series in found]
    every = math.ceil(len(rows) / 12)
    axes.set_yticks(rows[::every], [labels[row] for row in rows[::every]])


def _numbers(axes: Axes, panel: Panel, asked: Prometheus, at: float) -> None:
    axes.axis("off")
    (query,) = panel.queries
    found = sorted(asked.now(query.expression, at=at), key=lambda series: query.name(series.labels))
    for place, series in enumerate(found):
        middle = (place + 0.5) / len(found)
        value = _said(float(series.values[0]), panel.unit)
        axes.text(middle, 0.6, value, ha="center", va="center", fontsize=14, transform=axes.transAxes)
        name = query.name(series.labels)
        axes.text(middle, 0.1, name, ha="center", va="center", fontsize=7, transform=axes.transAxes)


def _said(value: float, unit: str) -> str:
    """A number as people read it: 12.5k, 3.2 ms, 40%."""
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "s" and value < 1:
        return "0" if value < _FLOOR_SECONDS / 100 else f"{1000 * value:.3g} ms"
    if unit == "s":
        return f"{value:.3g} s"
    if math.isinf(value):
        return "∞"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a dashboard's data without Grafana.")
    names = {path.stem: path for path in DASHBOARDS}
    parser.add_argument("dashboard", choices=sorted(names))
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rows", nargs="*", default=[], help="only these rows of it, by title")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    figure = draw(
        names[arguments.dashboard],
        Prometheus(arguments.prometheus),
        end=time.time(),
        minutes=arguments.minutes,
        rows=arguments.rows,
    )
    figure.savefig(arguments.output, dpi=80)


if __name__ == "__main__":
    main()
