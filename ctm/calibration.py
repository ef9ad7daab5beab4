"""Whether confidence and energy can be believed: calibration error and separation, at every tick."""
# Shapes: N rows, T ticks.

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def calibration_error(confidence_NT: Floats, correct_NT: Floats, bins: int = 15) -> NDArray[np.float64]:
    """Expected calibration error at each tick, [T]: mean distance of confidence from accuracy over equal bins.

    Guo et al. 2017, arXiv 1706.04599, equation 3: rows are binned by confidence, and each bin counts by its rows.

    Args:
        confidence_NT: probability of the predicted label, in [0, 1]; the mean over positions where there are several.
        correct_NT: 1 for right, 0 for wrong, or the share of right positions.
    """
    rows, ticks = confidence_NT.shape
    # The last bin includes 1.
    bin_NT = np.clip((confidence_NT * bins).astype(np.int64), 0, bins - 1)
    gap_NT = confidence_NT - correct_NT
    return np.array(
        [np.abs(np.bincount(bin_NT[:, tick], gap_NT[:, tick], minlength=bins)).sum() / rows for tick in range(ticks)]
    )


def separation(energy_NT: Floats, correct_NT: Floats) -> NDArray[np.float64]:
    """How well low energy tells right from wrong at each tick, [T]: the area under the ROC curve.

    It is the probability that of a right and a wrong prediction the right one has less energy, equal ones counting
    half: 1 is perfect, 0.5 is chance. NaN at a tick at which all are right or all are wrong.

    Args:
        correct_NT: 1 for right, 0 for wrong.
    """
    # Here, because importing scikit-learn takes seconds, and only models with an energy head need it.
    from sklearn.metrics import roc_auc_score

    return np.array(
        [
            roc_auc_score(correct_N, -energy_N) if 0 < correct_N.sum() < len(correct_N) else np.nan
            for energy_N, correct_N in zip(energy_NT.T, correct_NT.T, strict=True)
        ]
    )


def confidence_of_energy(energy_NT: Floats, margin: float) -> Floats:
    """What an energy says of being right, in [0, 1], for a model trained with this margin.

    The loss is least where energy is the margin times the probability of being wrong (see `energy_contrast`).
    """
    confidence_NT: Floats = 1.0 - np.clip(energy_NT / margin, 0.0, 1.0)
    return confidence_NT
