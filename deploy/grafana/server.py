"""The dashboard of what the server does: how soon it answers, how full it is, what it refuses, what it takes."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.frame import framed
from deploy.grafana.panels import by_model, graph, heat_map, mean, number, quantiles, rate, share

_OF_SERVERS = "and on (job, instance) ctm_model_info"
"""The processes that serve models, whatever else Prometheus watches."""


def server() -> Dashboard:
    """Callers first, then why they wait, then what fails, then the process."""
    dashboard = framed("Server", "ctm-server", "How ctm-serve fares: latency, queue, occupancy, errors, process.")
    _callers(dashboard)
    _slots(dashboard)
    _refusals(dashboard)
    _process(dashboard)
    return dashboard


def _callers(dashboard: Dashboard) -> None:
    dashboard.with_row(Row("What callers see"))
    dashboard.with_panel(
        number("Servers", "short", ("count(count by (job, instance) (ctm_model_info))", "servers"), width=4)
    )
    dashboard.with_panel(
        number("Waiting thoughts", "short", (by_model('ctm_thoughts_waiting{model=~"$model"}'), "{{model}}"), width=10)
    )
    dashboard.with_panel(
        number("Running thoughts", "short", (by_model('ctm_thoughts_running{model=~"$model"}'), "{{model}}"), width=10)
    )
    dashboard.with_panel(
        graph(
            "Time to first tick",
            "s",
            quantiles("ctm_first_tick_seconds"),
            description="From a request's arrival.",
            logarithmic=True,
        )
    )
    dashboard.with_panel(
        graph(
            "Time to last answer",
            "s",
            quantiles("ctm_request_seconds"),
            description="From a request's arrival. A chain takes as long as all its links.",
            logarithmic=True,
        )
    )
    dashboard.with_panel(heat_map("Time to first tick", "s", "ctm_first_tick_seconds"))
    dashboard.with_panel(
        graph("Requests", "reqps", [(by_model(rate("ctm_request_ticks_count")), "{{model}}")], description="Answered.")
    )
    dashboard.with_panel(
        graph(
            "Thoughts",
            "short",
            [(by_model(rate("ctm_thoughts_total")), "{{model}}")],
            description="Ended, a second: a request has as many as it has rows and links.",
        )
    )


def _slots(dashboard: Dashboard) -> None:
    dashboard.with_row(Row("Slots and ticks"))
    dashboard.with_panel(
        graph(
            "Queue",
            "short",
            [(by_model('ctm_thoughts_waiting{model=~"$model"}'), "{{model}}")],
            description="Thoughts that wait for a slot.",
        )
    )
    dashboard.with_panel(
        graph(
            "Time in the queue",
            "s",
            quantiles("ctm_queue_seconds"),
            description="From a request's arrival, or the answer before, to a thought's admission.",
            logarithmic=True,
        )
    )
    dashboard.with_panel(
        graph(
            "Occupancy",
            "percentunit",
            [(mean("ctm_occupancy_ratio"), "{{model}}")],
            description="Of the slots, at the ticks that ran: how many thought. "
            "Slots full and a queue mean that more requests come than are answered.",
            highest=1,
        )
    )
    dashboard.with_panel(
        graph("Thinking time", "s", quantiles("ctm_think_seconds"), description="Of a thought.", logarithmic=True)
    )
    dashboard.with_panel(
        graph("One tick", "s", quantiles("ctm_tick_seconds"), description="Of all running thoughts.", logarithmic=True)
    )
    dashboard.with_panel(
        graph(
            "Encoding and reverse steps, mean",
            "s",
            [(mean("ctm_encode_seconds"), "{{model}} encode"), (mean("ctm_finish_seconds"), "{{model}} reverse step")],
            description="One encoding of the rows admitted together; one reverse step of all rows that ended.",
            logarithmic=True,
        )
    )


def _refusals(dashboard: Dashboard) -> None:
    dashboard.with_row(Row("What goes wrong"))
    dashboard.with_panel(
        graph(
            "Requests refused or failed",
            "reqps",
            [(f"sum by (reason) ({rate('ctm_rejections_total')})", "{{reason}}")],
            description="Of the chosen models; of All, also those that asked for one that is not served.",
        )
    )
    dashboard.with_panel(
        graph(
            "Ticks wasted",
            "percentunit",
            [(share("ctm_ticks_wasted_total", "ctm_ticks_used_sum"), "{{model}}")],
            description="Of the ticks run: for a caller that left, or a request that failed.",
        )
    )
    dashboard.with_panel(
        graph(
            "Ticks merged",
            "short",
            [(by_model(rate("ctm_ticks_merged_total")), "{{model}}")],
            description="A second: unsent ticks that a newer one replaced, because their reader is slow.",
        )
    )
    dashboard.with_panel(
        graph(
            "Stopped by a deadline, or diverged",
            "short",
            [
                (by_model(rate("ctm_thoughts_total", f'stop_reason="{reason}"')), f"{{{{model}}}} {reason}")
                for reason in ("DEADLINE", "DIVERGED")
            ],
            description="Thoughts a second.",
        )
    )
    dashboard.with_panel(
        graph(
            "Bundles refused",
            "short",
            [("sum by (reason) (ctm_bundles_refused_total)", "{{reason}}")],
            description="Of the store, since the servers started: what may not serve. The server's log says why.",
        )
    )


def _process(dashboard: Dashboard) -> None:
    dashboard.with_row(Row("Process"))
    for title, unit, expression in (
        ("Processor", "short", "rate(process_cpu_seconds_total[$__rate_interval])"),
        ("Memory", "bytes", "process_resident_memory_bytes"),
        ("Open files and connections", "short", "process_open_fds"),
        ("Up since", "s", "time() - process_start_time_seconds"),
    ):
        dashboard.with_panel(graph(title, unit, [(f"{expression} {_OF_SERVERS}", "{{instance}}")]))
