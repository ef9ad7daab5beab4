"""Whether thoughts stop by certainty, by energy or by either, and what energy is worth: measured on rows of a task."""

# Shapes: N rows, T ticks.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import numpy as np

from ctm.calibration import calibration_error, confidence_of_energy, separation
from ctm.energy import EnergyPoint, StopRule, delta_candidates, energy_candidates, energy_point
from ctm.frontier import Floats, most_certain_accuracy
from ctm.judge import Judged

SAVING = 0.05
"""Share of the ticks that energy must save on held-out rows to ship: less is luck, and one rule is simpler than two."""
_POINTS = 12
"""Of a frontier in the card."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyQuality:
    """Measured on the test split; the rules that ship were chosen on held-out training rows."""

    energy: tuple[float, ...]
    """The mean, by tick, as are the next three."""
    separation: tuple[float, ...]
    """Probability that of a right and a wrong prediction the right one has less energy; NaN where all are alike."""
    certainty_separation: tuple[float, ...]
    """The same of more certainty."""
    calibration_error: tuple[float, ...]
    """Of 1 - energy / margin as the probability of being right; empty where the margin is not known."""
    margin: float | None
    """That the model was trained with."""
    thresholds: tuple[EnergyPoint, ...]
    """What an energy threshold buys, certainty stopping nothing."""
    deltas: tuple[EnergyPoint, ...]
    """What stopping buys once energy has changed by less than a delta, certainty stopping nothing."""
    shipped: EnergyPoint
    """Under the rules that ship."""
    rule: str
    """How the shipped rules were chosen: a sentence."""
    energies: Floats
    """[N, T] for the plots."""

    @property
    def threshold(self) -> float | None:
        """That ships."""
        return self.shipped.rule.energy if isfinite(self.shipped.rule.energy) else None


def choose_rule(
    held_out: Judged, energy_NT: Floats, max_accuracy_loss: float, certainty: float, *, may_omit: bool = True
) -> tuple[StopRule, str]:
    """What stops thoughts: certainty, unless energy saves ticks on the held-out rows, alone or beside it.

    Args:
        max_accuracy_loss: as a share; see `choose_energy`.
        certainty: the threshold that would ship.
        may_omit: whether certainty may be left out.

    Returns:
        The rule, and a sentence that says what the rows said.
    """
    alone = choose_energy(held_out, energy_NT, max_accuracy_loss, inf)
    beside = choose_energy(held_out, energy_NT, max_accuracy_loss, certainty)
    rules = {"certainty alone": StopRule(certainty=certainty)}
    if alone is not None and may_omit:
        rules["energy alone"] = StopRule(energy=alone)
    if beside is not None:
        rules["either of the two"] = StopRule(certainty=certainty, energy=beside)
    values = held_out.certainty, energy_NT, held_out.correct
    ticks = {name: energy_point(*values, rule).mean_ticks for name, rule in rules.items()}
    chosen = "certainty alone"
    for name, mean in ticks.items():
        if mean < (1 - SAVING) * ticks[chosen]:
            chosen = name
    found = ", ".join(f"{name} {mean:.2f}" for name, mean in ticks.items())
    return rules[chosen], (
        f"On {len(energy_NT):,} training rows held out of training, at most {100 * max_accuracy_loss:g} points below "
        f"the most certain tick's accuracy, mean ticks are: {found}. A rule ships in place of one before it where it "
        f"saves {SAVING:.0%} of the ticks: here {chosen}."
    )


def choose_energy(held_out: Judged, energy_NT: Floats, max_accuracy_loss: float, certainty: float) -> float | None:
    """The largest energy threshold that costs little, and than which no smaller one costs more; None: there is none.

    Little both where certainty stops nothing and where it stops thoughts at its own threshold: a request may switch off
    either.

    Args:
        max_accuracy_loss: most that may be lost, as a share, against answering at the most certain of all ticks.
        certainty: its threshold; infinite where it stops nothing. Where it alone loses more, energy may lose no more
            than that.
    """
    values = held_out.certainty, energy_NT, held_out.correct
    enough = most_certain_accuracy(held_out.certainty, held_out.correct) - max_accuracy_loss
    enough_beside = min(enough, energy_point(*values, StopRule(certainty=certainty)).accuracy)
    chosen = None
    for threshold in energy_candidates(energy_NT):
        alone = energy_point(*values, StopRule(energy=threshold))
        beside = energy_point(*values, StopRule(energy=threshold, certainty=certainty))
        if alone.accuracy < enough or beside.accuracy < enough_beside:
            break
        chosen = threshold
    return chosen


def measure_energy(
    judged: Judged, energy_NT: Floats, shipped: StopRule, margin: float | None, rule: str
) -> EnergyQuality:
    """Sum up the test rows; `rule` says how the shipped threshold was chosen."""
    values = judged.certainty, energy_NT, judged.correct
    known = () if margin is None else calibration_error(confidence_of_energy(energy_NT, margin), judged.correct)
    return EnergyQuality(
        energy=tuple(energy_NT.mean(axis=0, dtype=np.float64).tolist()),
        separation=tuple(separation(energy_NT, judged.correct).tolist()),
        certainty_separation=tuple(separation(-judged.certainty, judged.correct).tolist()),
        calibration_error=tuple(map(float, known)),
        margin=margin,
        thresholds=_frontier(values, [StopRule(energy=value) for value in energy_candidates(energy_NT, _POINTS)]),
        deltas=_frontier(values, [StopRule(delta=value) for value in delta_candidates(energy_NT, _POINTS)]),
        shipped=energy_point(*values, shipped),
        rule=rule,
        energies=energy_NT,
    )


def energy_margin(config: Mapping[str, Any]) -> float | None:
    """The margin that a checkpoint's config.json says its model was trained with; None where it says none."""
    try:
        margin = float(config["run"]["loss"]["energy_margin"])
    except (KeyError, TypeError, ValueError):
        return None
    return margin if margin > 0 else None


def _frontier(values: tuple[Floats, Floats, Floats], rules: Sequence[StopRule]) -> tuple[EnergyPoint, ...]:
    return tuple(energy_point(*values, rule) for rule in rules)
