"""Which levels of noise an image goes through, and how far a step goes that its thought makes sure of.

The plan is evenly spaced, from the noisiest level down, and ends at no noise at all. A step goes to the next level of
the plan; where a request allows strides, a row whose last thought was certain goes several at once.
"""

import numpy as np

from serving.diffusion.contract import CLEAN


def planned_levels(levels: int, steps: int) -> tuple[int, ...]:
    """What a row's image is at before each of its steps, and after the last: `steps` + 1 levels, falling.

    Args:
        steps: at most `levels`.
    """
    assert 1 <= steps <= levels, f"{steps} steps through {levels} levels"
    spaced = np.round(np.linspace(levels - 1, 0, steps)) if steps > 1 else np.array([levels - 1])
    return (*spaced.astype(np.int64).tolist(), CLEAN)


def certain_stride(certainty: float, threshold: float, most: int) -> int:
    """How many steps of the plan to take at once: one at or below the threshold, `most` at certainty 1.

    In a line between the two.

    Args:
        certainty, threshold: in [0, 1].
    """
    if certainty <= threshold:
        return 1
    return 1 + round((most - 1) * (certainty - threshold) / (1 - threshold))
