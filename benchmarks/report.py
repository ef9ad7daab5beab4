"""Measures as tables for people."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from benchmarks.statistics import Summary

_WIDTH = 150


def wide_console() -> Console:
    """On standard error, so that standard output is for scripts; wide where no terminal says how wide it is."""
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=_WIDTH)


@dataclass(frozen=True, slots=True)
class Measured:
    """An arm and what it did."""

    key: str
    title: str
    setting: str
    summary: Summary

    @property
    def rate(self) -> float:
        return self.summary.thoughts_per_second

    def ratio(self, others: Sequence["Measured"], key: str) -> float | None:
        """Thoughts a second over those of another arm; None when it was not measured."""
        return next((self.rate / other.rate for other in others if other.key == key), None)

    def to_json(self, others: Sequence["Measured"]) -> dict[str, object]:
        return {
            "title": self.title,
            "setting": self.setting,
            **asdict(self.summary),
            "ratio_to_a": self.ratio(others, "a"),
            "ratio_to_f": self.ratio(others, "f"),
        }


def arms_table(title: str, measured: Sequence[Measured]) -> Table:
    """One line an arm."""
    table = _table(
        "arm",
        *("thoughts/s", "slices", "x a", "of f", "ticks", "p50", "p99", "occupancy", "CPU/thought", "client", "right"),
        title=title,
    )
    for arm in measured:
        summary = arm.summary
        table.add_row(
            f"{arm.key}  {arm.title}",
            f"{arm.rate:,.0f}",
            f"{summary.slowest:,.0f}-{summary.fastest:,.0f}",
            number(arm.ratio(measured, "a"), ".2f"),
            share(arm.ratio(measured, "f")),
            number(summary.mean_ticks, ".2f"),
            milliseconds(summary.p50_seconds),
            milliseconds(summary.p99_seconds),
            share(summary.occupancy),
            milliseconds(summary.cpu_seconds_per_thought),
            milliseconds(summary.client_cpu_seconds_per_thought),
            number(summary.accuracy and 100 * summary.accuracy, ".2f"),
        )
    return table


def settings_table(measured: Sequence[Measured]) -> Table:
    """What each arm was found to run fastest with."""
    table = Table.grid(padding=(0, 2))
    for arm in measured:
        table.add_row(f"  {arm.key}", arm.setting)
    return table


def costs(measured: Sequence[Measured]) -> Iterator[str]:
    """What each way through gRPC costs over the engine alone, in words."""
    arms = {arm.key: arm for arm in measured}
    engine = arms.get("e")
    for key in ("c", "d", "g"):
        if key not in arms or engine is None:
            continue
        arm = arms[key]
        more = (arm.summary.cpu_seconds_per_thought or 0) - (engine.summary.cpu_seconds_per_thought or 0)
        yield (
            f"{key} against e: {arm.rate / engine.rate:.0%} of the thoughts a second, "
            f"{more * 1e6:+.0f} µs of the server's processor time a thought, "
            f"and {milliseconds(arm.summary.client_cpu_seconds_per_thought)} of the client's on the same cores"
        )


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
