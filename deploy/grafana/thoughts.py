"""The dashboard of what models do: how many ticks they use, why they stop, how certain they are, when they abstain."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from deploy.grafana.frame import framed
from deploy.grafana.panels import by_model, graph, heat_map, mean, number, quantiles, rate, share

_LINKS = (0.5, 0.9)
_CERTAINTY = (0.1, 0.5, 0.9)


def thoughts() -> Dashboard:
    """Ticks first: they are what a thought costs."""
    dashboard = framed("Thoughts", "ctm-thoughts", "What the models of ctm-serve think: ticks, certainty, abstention.")
    _ticks(dashboard)
    _endings(dashboard)
    _chains(dashboard)
    return dashboard


def _ticks(dashboard: Dashboard) -> None:
    dashboard.with_row(Row("Ticks used"))
    dashboard.with_panel(
        number(
            "Ticks used by requests",
            "short",
            (by_model('ctm_request_ticks_sum{model=~"$model"}'), "{{model}}"),
            description="Of all requests that the versions served now have answered, over their rows and links.",
        )
    )
    dashboard.with_panel(number("Ticks used per request, mean", "short", (mean("ctm_request_ticks"), "{{model}}")))
    dashboard.with_panel(
        number(
            "Ticks saved",
            "percentunit",
            (share("ctm_ticks_saved_total", "ctm_ticks_saved_total", "ctm_ticks_used_sum"), "{{model}}"),
            description="Of the budget of the thoughts that ended: what was left when they stopped by themselves.",
        )
    )
    dashboard.with_panel(
        heat_map(
            "Ticks used per request",
            "short",
            "ctm_request_ticks",
            description="Over all rows and links of a request: how many requests ended in each range.",
        )
    )
    dashboard.with_panel(
        graph(
            "Ticks used per request, by model",
            "short",
            quantiles("ctm_request_ticks"),
            description="Half, nine tenths and 99 % of the requests use no more.",
            logarithmic=True,
        )
    )
    dashboard.with_panel(
        graph(
            "Ticks used per thought, by model",
            "short",
            quantiles("ctm_ticks_used"),
            description="One row of one link. Rising lines mean harder inputs, or a model that has grown less certain.",
        )
    )
    dashboard.with_panel(heat_map("Ticks used per thought", "short", "ctm_ticks_used"))
    dashboard.with_panel(
        graph(
            "Ticks run, saved, wasted",
            "short",
            [
                (by_model(rate("ctm_ticks_used_sum")), "{{model}} run"),
                (by_model(rate("ctm_ticks_saved_total")), "{{model}} saved"),
                (by_model(rate("ctm_ticks_wasted_total")), "{{model}} wasted"),
            ],
            description="A second. Saved: budget left when a thought stopped by itself. "
            "Wasted: run for a caller that left, or a request that failed.",
        )
    )
    dashboard.with_panel(
        graph(
            "Ticks used by thoughts, mean by stop reason",
            "short",
            [
                (
                    f"{by_model(rate('ctm_ticks_used_sum'), 'stop_reason')} / "
                    f"({by_model(rate('ctm_ticks_used_count'), 'stop_reason')} > 0)",
                    "{{model}} {{stop_reason}}",
                )
            ],
        )
    )


def _endings(dashboard: Dashboard) -> None:
    dashboard.with_row(Row("How thoughts end"))
    dashboard.with_panel(
        graph(
            "Stop reasons",
            "short",
            [(f"sum by (stop_reason) ({rate('ctm_thoughts_total')})", "{{stop_reason}}")],
            description="Thoughts a second.",
            stacked=True,
        )
    )
    answered = rate("ctm_thoughts_total", 'stop_reason!="CANCELLED"')
    dashboard.with_panel(
        graph(
            "Abstained",
            "percentunit",
            [(f"{by_model(rate('ctm_abstentions_total'))} / ({by_model(answered)} > 0)", "{{model}}")],
            description="Of the answers: those less certain than they should be.",
            highest=1,
        )
    )
    dashboard.with_panel(heat_map("Certainty at stop", "percentunit", "ctm_stop_certainty"))
    dashboard.with_panel(
        graph("Certainty at stop, by model", "percentunit", quantiles("ctm_stop_certainty", _CERTAINTY), highest=1)
    )
    without = by_model(rate("ctm_reverse_step_abstentions_total"), "noise")
    dashboard.with_panel(
        graph(
            "Reverse steps without their thought's guidance",
            "percentunit",
            [(f"{without} / ({by_model(rate('ctm_reverse_steps_total'), 'noise')} > 0)", "{{model}} noise {{noise}}")],
            description="Of diffusion alone: by the noise the steps began with, those whose thought abstained.",
            highest=1,
        )
    )


def _chains(dashboard: Dashboard) -> None:
    dashboard.with_row(Row("Chains"))
    dashboard.with_panel(
        graph(
            "Links of a row's chain, by model",
            "short",
            quantiles("ctm_chain_links", _LINKS),
            description="Tokens of a text, reverse steps of a picture.",
        )
    )
    dashboard.with_panel(
        graph(
            "Reverse steps",
            "short",
            [(by_model(rate("ctm_reverse_steps_total"), "noise"), "{{model}} noise {{noise}}")],
            description="A second, by the noise they began with.",
            stacked=True,
        )
    )
