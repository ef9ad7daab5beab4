"""What both dashboards have around their panels: a data source to choose, models to choose, a link to the other."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from deploy.grafana.panels import DATA_SOURCE

_TAG = "ctm-serving"


def framed(title: str, uid: str, description: str) -> Dashboard:
    """A dashboard without panels."""
    return (
        Dashboard(f"ctm-serving: {title}")
        .uid(uid)
        .description(description)
        .tags([_TAG])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .link(
            DashboardLink("ctm-serving")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([_TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            QueryVariable("model")
            .label("Model")
            .datasource(DATA_SOURCE)
            .query("label_values(ctm_model_info, model)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            # Also requests for models that are not served, which are counted under no name.
            .all_value(".*")
            .current(VariableOption(selected=True, text="All", value="$__all"))
        )
    )
