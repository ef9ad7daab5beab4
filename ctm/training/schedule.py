"""The learning rate: a line up during the warm-up, half a cosine down afterwards."""

import math

WARMUP_START = 1e-20


def learning_rate(update: int, *, warmup: int, updates: int, highest: float, lowest: float) -> float:
    """The rate of one update, a function of its number alone.

    Args:
        update: from 0. Beyond `updates` the rate stays at the lowest.
        warmup: updates of the rise; its last has the highest rate. 0 and 1 begin at the highest.
        updates: where the cosine would reach the lowest.
    """
    if update < warmup and warmup > 1:
        return WARMUP_START + (highest - WARMUP_START) * update / (warmup - 1)
    fallen = min(1.0, max(0, update - warmup) / (updates - warmup))
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * fallen)) / 2
