"""The kinds of panel that the dashboards are made of: lines over time, heat maps, single numbers.

Every query is about the models chosen at the top of the dashboard, which the expressions call `$model`.
"""

from collections.abc import Sequence
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
QUANTILES = (0.5, 0.9, 0.99)

Query = tuple[str, str]
"""An expression, and what its series are called."""


def rate(metric: str, labels: str = "") -> str:
    """How much a counter of the chosen models grows a second."""
    return f"rate({metric}{{{_of_models(labels)}}}[$__rate_interval])"


def by_model(expression: str, *labels: str) -> str:
    """The sum over versions and servers."""
    return f"sum by ({', '.join(('model', *labels))}) ({expression})"


def share(part: str, *whole: str) -> str:
    """What one counter is of the sum of several, by model; nothing where nothing happened."""
    total = " + ".join(by_model(rate(metric)) for metric in whole)
    return f"{by_model(rate(part))} / ({total} > 0)"


def mean(histogram: str) -> str:
    """By model; nothing where nothing was observed."""
    return f"{by_model(rate(f'{histogram}_sum'))} / ({by_model(rate(f'{histogram}_count'))} > 0)"


def quantile(histogram: str, value: float) -> Query:
    """One quantile by model."""
    buckets = by_model(rate(f"{histogram}_bucket"), "le")
    return f"histogram_quantile({value:g}, {buckets})", f"{{{{model}}}} p{100 * value:g}"


def quantiles(histogram: str, values: Sequence[float] = QUANTILES) -> list[Query]:
    """Several quantiles by model."""
    return [quantile(histogram, value) for value in values]


def graph(
    title: str,
    unit: str,
    queries: Sequence[Query],
    *,
    description: str = "",
    width: int = 12,
    logarithmic: bool = False,
    stacked: bool = False,
    highest: float | None = None,
) -> timeseries.Panel:
    """Lines over time.

    Args:
        width: in twenty-fourths of the dashboard.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATA_SOURCE)
        .unit(unit)
        .span(width)
        .height(HEIGHT)
        .line_width(2)
        .fill_opacity(60 if stacked else 0)
        .show_points(VisibilityMode.NEVER)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL if stacked else StackingMode.NONE))
        .scale_distribution(_logarithmic() if logarithmic else _linear())
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.RIGHT)
            .show_legend(True)
            .calcs(["lastNotNull"])
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if not logarithmic:
        panel.min(0)
    if highest is not None:
        panel.max(highest)
    for place, (expression, name) in enumerate(queries):
        panel.with_target(_query(expression, name, ascii_uppercase[place]).range())
    return panel


def heat_map(title: str, unit: str, histogram: str, *, description: str = "") -> heatmap.Panel:
    """How often each bucket of a histogram was met, over time: one panel for each chosen model, side by side."""
    observed = f"sum by (le) (increase({histogram}_bucket{{{_of_models()}}}[$__rate_interval]))"
    return (
        heatmap.Panel()
        .title(f"{title}: $model")
        .description(description)
        .datasource(DATA_SOURCE)
        .span(24)
        .height(HEIGHT)
        .repeat("model")
        .repeat_direction("h")
        .max_per_row(3)
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Viridis")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .cell_gap(1)
        .filter_values(heatmap.FilterValueRange().le(1e-9))  # an empty cell is no colour, not the darkest
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_values(heatmap.CellValues().decimals(0))
        .show_legend()
        .mode(TooltipDisplayMode.SINGLE)
        .show_y_histogram()
        .with_target(_query(observed, "{{le}}").format(PromQueryFormat.HEATMAP).range())
    )


def number(title: str, unit: str, query: Query, *, description: str = "", width: int = 8) -> stat.Panel:
    """What it is now, one number for each series."""
    expression, name = query
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATA_SOURCE)
        .unit(unit)
        .span(width)
        .height(4)
        .graph_mode(BigValueGraphMode.NONE)
        .color_mode(BigValueColorMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_query(expression, name).instant())
    )


def _of_models(labels: str = "") -> str:
    return 'model=~"$model"' + (f", {labels}" if labels else "")


def _query(expression: str, name: str, letter: str = "A") -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(name).datasource(DATA_SOURCE)


def _linear() -> common.ScaleDistributionConfig:
    return common.ScaleDistributionConfig().type(ScaleDistribution.LINEAR)


def _logarithmic() -> common.ScaleDistributionConfig:
    return common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
