"""Measures as tables for people."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.statistics import Summary

_WIDTH = 150


def wide_console() -> Console:
    """On standard error, so that standard output is for scripts; wide where no terminal says how wide it is."""
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=_WIDTH)


def load_table(rows: Sequence[tuple[str, Summary]]) -> Table:
    """One line for each load that was put on a server."""
    table = _table(
        "offered", "thoughts/s", "p50", "p99", "rejected", "failed", "mean ticks", "occupancy", "CPU/thought", "client"
    )
    for offered, summary in rows:
        table.add_row(
            offered,
            f"{summary.thoughts_per_second:,.0f}",
            milliseconds(summary.p50_seconds),
            milliseconds(summary.p99_seconds),
            str(summary.rejected),
            str(summary.failed),
            number(summary.mean_ticks, ".1f"),
            share(summary.occupancy),
            milliseconds(summary.cpu_seconds_per_thought),
            milliseconds(summary.client_cpu_seconds_per_thought),
        )
    return table


def _table(first: str, *columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g} ms"


def share(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1%}"


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
