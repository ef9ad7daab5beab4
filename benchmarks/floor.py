"""Arm f: the bare encode and tick graphs, each at its best row count, for the ticks that the thoughts use.

No server can be faster with the same graphs on the same runtime: nothing is stacked, judged, copied or answered.
"""

import time
from collections.abc import Callable

from benchmarks.arm import Stopwatch
from benchmarks.graphs import BoundGraphs, runtimes
from benchmarks.statistics import Slice
from serving.bundle import Bundle

ROW_COUNTS = (4, 8, 16, 24, 32, 48, 64)
_BLOCK = 192
"""Thoughts; every row count divides it."""
_TRIALS = 15


class Floor:
    """Graph calls in the proportion in which thoughts need them."""

    key, title = "f", "bare graphs at their best row counts"

    def __init__(self, encode: BoundGraphs, tick: BoundGraphs, mean_ticks: float) -> None:
        self._encode, self._tick = encode, tick
        self._encodes = _BLOCK // encode.rows
        self._ticks = max(1, round(_BLOCK * mean_ticks / tick.rows))
        # The block's own mean, as a block has whole ticks.
        self._block_thoughts = self._ticks * tick.rows / mean_ticks
        self._mean_ticks = mean_ticks
        self.setting = f"encode {encode.rows} rows, {encode.runtime}; tick {tick.rows} rows, {tick.runtime}"

    def run(self, seconds: float) -> Slice:
        watch = Stopwatch()
        blocks = 0
        while not blocks or watch.seconds < seconds:
            for _ in range(self._encodes):
                self._encode.encode()
            for _ in range(self._ticks):
                self._tick.tick()
            blocks += 1
        thoughts = round(blocks * self._block_thoughts)
        return Slice(
            seconds=watch.seconds,
            thoughts=thoughts,
            ticks=round(thoughts * self._mean_ticks),
            cpu_seconds=watch.cpu_seconds,
        )


def find_floor(bundle: Bundle, mean_ticks: float) -> Floor:
    """The floor at the row counts and runtime settings that are fastest, of each graph on its own."""
    bound = [BoundGraphs(bundle, rows, runtime) for runtime in runtimes() for rows in ROW_COUNTS]
    encode = min(bound, key=lambda graphs: _seconds(graphs.encode) / graphs.rows)
    tick = min(bound, key=lambda graphs: _seconds(graphs.tick) / graphs.rows)
    return Floor(encode, tick, mean_ticks)


def _seconds(run: Callable[[], object]) -> float:
    """Of one run, the median of a few."""
    times = []
    for _ in range(_TRIALS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return sorted(times)[_TRIALS // 2]
