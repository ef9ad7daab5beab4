"""When requests should be sent, decided before any is: what the server does never moves an arrival."""

import numpy as np
from numpy.typing import NDArray


def arrivals(rate: float, seconds: float, *, poisson: bool, seed: int) -> NDArray[np.float64]:
    """Seconds from the beginning at which to send, ascending, within [0, seconds).

    Args:
        rate: requests a second.
        poisson: independent exponential gaps, as of many callers who know nothing of each other; else one request
            every 1 / rate.
    """
    if not (rate > 0 and seconds > 0):
        raise ValueError(f"rate and seconds must be more than 0, got {rate} and {seconds}")
    if not poisson:
        return np.arange(0.0, seconds, 1.0 / rate)
    # Given their number, the arrivals of a Poisson process are independent and uniform.
    generator = np.random.default_rng(seed)
    return np.sort(generator.uniform(0.0, seconds, generator.poisson(rate * seconds)))
