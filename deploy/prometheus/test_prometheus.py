"""A real Prometheus watches a real server that real clients use; every panel and every rule is asked of it."""

import asyncio
import bisect
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pytest

from benchmarks.server import ServerProcess
from deploy.grafana.read import DASHBOARDS, Panel, panels
from deploy.prometheus.asked import Prometheus
from deploy.prometheus.load import DIGITS, MODELS, PICTURES, Counted, load, trouble
from deploy.prometheus.local import HERE, LocalPrometheus
from serving.metrics import Metrics

ROOT = HERE.parents[1]
WINDOW = "1h"  # all that was ever seen, on however slow a machine
pytestmark = pytest.mark.timeout(1200)


@dataclass
class Watched:
    """What was asked of the server, and a Prometheus that saw it."""

    prometheus: Prometheus
    metrics: str
    counted: Counted
    loaded_at: float
    """When Prometheus asked for what it saw of all that the clients counted, and of nothing else."""
    troubled_at: float
    """The same, of those who left and those who asked wrongly, too."""
    evaluated_at: float
    """When every rule had looked at all of it; rules look five minutes back."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    counted = Counted()
    models = ",".join(MODELS)
    with ServerProcess(ROOT / "model_store", models, ["--engine.num-slots", "4"]) as server:
        target = server.metrics.removeprefix("http://").removesuffix("/metrics")
        with LocalPrometheus(target, tmp_path_factory.mktemp("prometheus")) as local:
            # Growth is seen from the first scrape on: it has to come before the first request.
            local.wait(lambda asked: _total(asked, "ctm_model_info") == len(MODELS), "the server was scraped")
            asyncio.run(load(server.address, counted, rounds=6))
            asked_for = sum(map(len, counted.requests.values()))
            local.wait(lambda asked: _total(asked, "ctm_request_ticks_count") == asked_for, "all requests were seen")
            loaded_at = _scraped_at(local.asked)
            asyncio.run(trouble(server.address))
            refused, left = (
                'ctm_rejections_total{reason=~"invalid|unknown_model"}',
                'ctm_thoughts_total{stop_reason="CANCELLED"}',
            )
            local.wait(lambda asked: _total(asked, refused) == 6, "all refusals were seen")
            local.wait(lambda asked: _total(asked, left) > 0, "a caller that left was seen")
            troubled_at, seen_at = _scraped_at(local.asked), time.time()
            local.wait(lambda asked: _all_evaluated_since(asked, seen_at), "all rules were evaluated")
            yield Watched(local.asked, server.metrics, counted, loaded_at, troubled_at, evaluated_at=time.time())


def _total(asked: Prometheus, metric: str) -> float:
    return sum(series.values[0] for series in asked.now(f"sum({metric})"))


def _scraped_at(asked: Prometheus) -> float:
    """When it asked for what it saw last. By the clock, the next scrape may have begun, to be answered late or not."""
    (newest,) = asked.now("max(timestamp(ctm_request_ticks_count))")
    return float(newest.values[0])


def _all_evaluated_since(asked: Prometheus, begin: float) -> bool:
    return all(datetime.fromisoformat(rule["lastEvaluation"]).timestamp() > begin for rule in asked.rules())


def shown(title: str) -> Panel:
    """The panel of that title."""
    (panel,) = (
        panel for path in DASHBOARDS for panel in panels(path, models=MODELS, window=WINDOW) if panel.title == title
    )
    return panel


def promtool(*arguments: str, standard_input: str | None = None) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program is not None, "there is no `promtool` here: Debian's package prometheus brings it"
    return subprocess.run(
        [program, *arguments], input=standard_input, cwd=HERE, text=True, capture_output=True, timeout=900, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("check", "config", "prometheus.yml"), id="configuration"),
        pytest.param(("check", "rules", "recording.rules.yml", "alerts.rules.yml"), id="rules"),
        pytest.param(("test", "rules", "rules_test.yml"), id="what the rules say of made-up days"),
    ],
)
def test_promtool_finds_nothing_wrong_with(arguments):
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_server_says_of_itself_is_well_formed(watched):
    with urllib.request.urlopen(watched.metrics) as response:
        text = response.read().decode()
    assert "ctm_request_ticks_bucket" in text
    done = promtool("check", "metrics", standard_input=text)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_shows_something(watched, path):
    empty = []
    for panel in panels(path, models=MODELS, window=WINDOW):
        for query in panel.queries:
            if panel.kind == "stat":
                found = watched.prometheus.now(query.expression)
            else:
                found = watched.prometheus.over(query.expression, start=time.time() - 60, end=time.time(), step=5)
            if not any(np.isfinite(series.values).any() for series in found):
                empty.append(f"{panel.row}: {panel.title}: {query.expression}")
    assert not empty, "\n".join(empty)


def test_every_rule_is_evaluated_and_has_something_to_look_at(watched):
    rules = watched.prometheus.rules()
    assert {rule["type"] for rule in rules} == {"recording", "alerting"}
    for rule in rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
        if rule["type"] == "recording":
            looked_at = [rule["name"]]
        else:  # it says nothing while all is well, so what it compares must be there
            looked_at = re.findall(r"(?:model:ctm_[\w:]+|ctm_\w+|up)(?:\{.*?\})?(?=[\s\[)]|$)", rule["query"])
        assert looked_at, rule["query"]
        for expression in looked_at:
            assert watched.prometheus.now(expression, at=watched.evaluated_at), (
                f"{rule['name']}: nothing for {expression}"
            )


def test_no_failure_is_raised_by_an_ordinary_load(watched):
    alerts = {rule["name"]: rule["state"] for rule in watched.prometheus.rules() if rule["type"] == "alerting"}
    for name in ("CtmModelFails", "CtmQueueFull", "CtmBundleRefused"):
        assert alerts[name] == "inactive", name


def test_the_ticks_that_are_shown_are_those_that_the_clients_counted(watched):
    (query,) = shown("Ticks used by requests").queries
    used = watched.prometheus.by("model", query.expression, at=watched.loaded_at)
    assert used == {model: sum(ticks) for model, ticks in watched.counted.requests.items()}
    assert set(used) == set(MODELS)

    thoughts = watched.counted.thoughts
    summed = watched.prometheus.by("model", "sum by (model) (ctm_ticks_used_sum)", at=watched.loaded_at)
    assert summed == {model: sum(ticks) for model, ticks in thoughts.items()}
    number = watched.prometheus.by("model", "sum by (model) (ctm_ticks_used_count)", at=watched.loaded_at)
    assert number == {model: len(ticks) for model, ticks in thoughts.items()}


@pytest.mark.parametrize("model", MODELS)
def test_the_heat_map_has_the_shape_of_what_the_clients_counted(watched, model):
    """`increase` guesses what happened between scrapes, for all buckets alike: their shares are exact."""
    (query,) = shown(f"Ticks used per request: {model}").queries
    seen = watched.prometheus.by("le", query.expression, at=watched.loaded_at)
    ticks = watched.counted.requests[model]
    expected = {le: sum(used <= float(le) for used in ticks) / len(ticks) for le in seen}
    assert len(seen) > 10
    assert {le: value / seen["+Inf"] for le, value in seen.items()} == pytest.approx(expected)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_quantiles_lie_in_the_bucket_that_the_clients_counted_in(watched, model, share):
    panel = shown("Ticks used per request, by model")
    (query,) = (query for query in panel.queries if query.legend.endswith(f"p{100 * share:g}"))
    seen = watched.prometheus.by("model", query.expression, at=watched.loaded_at)[model]
    bounds = sorted(map(float, watched.prometheus.by("le", f'ctm_request_ticks_bucket{{model="{model}"}}')))
    ticks = np.array(watched.counted.requests[model])
    place = bisect.bisect_left(bounds, float(np.quantile(ticks, share, method="inverted_cdf")))
    below = bounds[place - 1] if place else 0.0
    assert below <= seen <= bounds[place]


def test_stop_reasons_and_abstentions_are_those_that_the_clients_counted(watched):
    reasons = watched.prometheus.by(
        "stop_reason", "sum by (stop_reason) (ctm_thoughts_total) > 0", at=watched.loaded_at
    )
    assert reasons == dict(watched.counted.reasons)
    abstained = watched.prometheus.by("model", "sum by (model) (ctm_abstentions_total)", at=watched.loaded_at)
    assert abstained == {model: watched.counted.abstained[model] for model in MODELS}
    assert min(abstained[DIGITS], abstained[PICTURES]) > 0


def test_refusals_and_callers_that_left_are_shown(watched):
    seen = watched.prometheus.by("reason", "sum by (reason) (ctm_rejections_total) > 0", at=watched.troubled_at)
    assert seen == {"invalid": 3, "unknown_model": 3}
    ended = watched.prometheus.by("stop_reason", "sum by (stop_reason) (ctm_thoughts_total)", at=watched.troubled_at)
    assert ended["CANCELLED"] > 0


def test_an_expression_that_prometheus_does_not_take_is_said_in_its_own_words(watched):
    with pytest.raises(ValueError, match="parse error"):
        watched.prometheus.now("sum by (model")


def test_all_that_is_shown_and_asked_is_a_metric_of_the_server():
    """And all that the server reports is shown somewhere, but for what is worked out from the rest."""
    known = {family.name for family in _families()}
    text = "".join(path.read_text() for path in (*DASHBOARDS, *HERE.glob("*.rules.yml")))
    shown = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in re.findall(r"\b(?<!:)ctm_\w+", text)}
    assert shown == known


def _families():
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    Metrics(registry)
    return registry.collect()
