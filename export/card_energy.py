"""The card's section about energy: what stopping by it buys, and how far it can be believed."""

from collections.abc import Sequence
from math import isfinite, isnan

from ctm.energy import EnergyPoint
from ctm.frontier import FrontierPoint
from export.energy import EnergyQuality
from export.markdown import number, table
from export.plots import ENERGY_BY_TICK, ENERGY_FRONTIER


def render_energy(energy: EnergyQuality, certainty: FrontierPoint) -> str:
    """The section of a model with an energy head.

    Args:
        certainty: how the shipped certainty threshold fares alone.
    """
    parts = [
        "## Energy",
        _shipped(energy, certainty),
        _frontier(energy),
        f"![Stopping by certainty and by energy]({ENERGY_FRONTIER})\n![Energy by tick]({ENERGY_BY_TICK})",
        _by_tick(energy),
        _calibration(energy),
    ]
    return "\n\n".join(parts)


def _shipped(energy: EnergyQuality, certainty: FrontierPoint) -> str:
    shipped, rule = energy.shipped, energy.shipped.rule
    rules = []
    if isfinite(rule.certainty):
        rules.append(f"its certainty reaches {number(rule.certainty)}")
    if isfinite(rule.energy):
        rules.append(f"its energy is {number(rule.energy)} or less")
    if rule.delta:
        rules.append(f"its energy changes by less than {number(rule.delta)}")
    return (
        f"A thought stops when {' or when '.join(rules)}; a request may ask for other thresholds or switch a rule off. "
        f"So **{shipped.accuracy:.2%}** are right after **{shipped.mean_ticks:.2f} ticks** on average (standard "
        f"deviation {shipped.ticks_deviation:.2f}), {shipped.share_certain:.1%} stopped by certainty and "
        f"{shipped.share_energy:.1%} by energy; by certainty {number(certainty.threshold)} alone "
        f"{certainty.accuracy:.2%} after {certainty.mean_ticks:.2f}. {energy.rule} A thought that energy stops answers "
        "at its last tick."
    )


def _frontier(energy: EnergyQuality) -> str:
    head = ("rule", "accuracy", "mean ticks", "deviation of ticks", "share stopped")
    rows = [
        *_rows("energy ≤", [(point.rule.energy, point) for point in energy.thresholds]),
        *_rows("change <", [(point.rule.delta, point) for point in energy.deltas]),
    ]
    return f"Each rule of energy alone, certainty switched off:\n\n{table(head, rows)}"


def _rows(sign: str, points: Sequence[tuple[float, EnergyPoint]]) -> list[tuple[str, ...]]:
    return [
        (
            f"{sign} {number(value)}",
            f"{point.accuracy:.2%}",
            f"{point.mean_ticks:.2f}",
            f"{point.ticks_deviation:.2f}",
            f"{point.share_energy:.1%}",
        )
        for value, point in points
    ]


def _by_tick(energy: EnergyQuality) -> str:
    head = ["tick", "mean energy", "separation by energy", "by certainty"]
    columns = [[f"{value:.3f}" for value in energy.energy], _shares(energy.separation)]
    columns.append(_shares(energy.certainty_separation))
    if energy.calibration_error:
        head.append("calibration error of energy")
        columns.append(_shares(energy.calibration_error))
    return table(head, [(str(tick), *row) for tick, row in enumerate(zip(*columns, strict=True), start=1)])


def _calibration(energy: EnergyQuality) -> str:
    text = (
        "Separation: the probability that of a right and a wrong prediction the right one has less energy (more "
        "certainty); 1 is perfect, 0.5 is chance."
    )
    if energy.margin is not None:
        text += (
            f" Energy was trained towards 0 where right and {number(energy.margin)} where wrong, so that energy over "
            f"{number(energy.margin)} estimates the probability of being wrong; calibration error is that estimate's."
        )
    return text


def _shares(values: Sequence[float]) -> list[str]:
    return ["–" if isnan(value) else f"{value:.3f}" for value in values]
