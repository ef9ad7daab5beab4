"""Whether confidence can be believed: the expected calibration error, at every tick."""
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
