"""The dashboards are what their Python says, hold against Grafana's own types, and can be drawn."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.grafana.draw import draw
from deploy.grafana.read import DASHBOARDS, Query, panels
from deploy.prometheus.asked import Series

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = Path(__file__).resolve().parent / "schema"
GENERATOR = ROOT / ".venv-deploy" / "grafana" / "bin" / "python"
pytestmark = pytest.mark.timeout(1200)


def test_the_dashboards_are_what_their_python_says():
    assert GENERATOR.exists(), "there is no .venv-deploy/grafana: `make test-deploy` makes it"
    command = [GENERATOR, "-m", "deploy.grafana.generate", "--check"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which validate.mjs runs: Grafana's types, from the npm registry."""
    npm = shutil.which("npm")
    assert npm is not None, "there is no `npm` here: Debian's packages nodejs and npm bring it"
    folder = tmp_path_factory.mktemp("schema") / "schema"
    shutil.copytree(SCHEMA, folder, ignore=shutil.ignore_patterns("node_modules"))
    install = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(install, cwd=folder, text=True, capture_output=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    yield folder
    shutil.rmtree(folder)


def validated(folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    command = ["node", "validate.mjs", *map(str, paths)]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=900, check=False)


def test_the_dashboards_hold_against_the_types_that_grafana_publishes(types):
    done = validated(types, *DASHBOARDS)
    assert (done.returncode, done.stderr) == (0, "")
    pieces = sum(1 + len(json.loads(path.read_text())["panels"]) for path in DASHBOARDS)
    assert done.stdout == f"{pieces} checked, 0 wrong\n"


def test_what_grafana_would_not_understand_is_found(types, tmp_path):
    dashboard = json.loads(DASHBOARDS[0].read_text())
    graph = next(panel for panel in dashboard["panels"] if panel["type"] == "timeseries")
    dashboard["refreshEvery"] = "30s"
    graph["fieldConfig"]["defaults"]["custom"]["lineWidth"] = "thick"
    del graph["options"]["legend"]
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(dashboard))
    done = validated(types, path)
    assert done.returncode == 1
    for said in ('"refreshEvery"', "lineWidth: must be number", "required property 'legend'"):
        assert said in done.stderr


def test_panels_have_ids_of_their_own_and_do_not_lie_on_each_other():
    for path in DASHBOARDS:
        found = json.loads(path.read_text())["panels"]
        assert sorted(panel["id"] for panel in found) == list(range(1, len(found) + 1))
        taken = set()
        for place in (panel["gridPos"] for panel in found):
            assert place["x"] + place["w"] <= 24
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, f"{path.stem}: {place}"
            taken |= cells


def test_a_panel_that_repeats_is_read_once_for_each_model():
    found = panels(DASHBOARDS[-1], models=["mnist", "kjv"], window="5m")
    titles = [panel.title for panel in found if panel.kind == "heatmap"]
    assert titles[:2] == ["Ticks used per request: mnist", "Ticks used per request: kjv"]
    assert all("$" not in query.expression for panel in found for query in panel.queries)


def test_series_are_called_after_their_labels():
    query = Query(expression="", legend="{{model}} {{reason}}")
    assert query.name({"model": "kjv", "reason": "invalid", "le": "1"}) == "kjv invalid"
    assert query.name({"reason": "unknown_model"}) == "unknown_model"


class Remembered:
    """Stands for a Prometheus: two models, every series growing, heat maps in three buckets."""

    def now(self, _, *, at=None):
        return [Series({"model": model}, np.array([at]), np.array([12.0])) for model in ("kjv", "mnist")]

    def over(self, expression, *, start, end, step):
        times = np.arange(start, end + step / 2, step)
        buckets = ("5", "10", "+Inf") if "by (le)" in expression else ("1",)
        return [
            Series({"model": "mnist", "le": le, "stop_reason": "CERTAIN"}, times, (1.0 + place) * (times - start))
            for place, le in enumerate(buckets)
        ]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_can_be_drawn(path):
    figure = draw(path, Remembered(), end=1e9, minutes=10)
    drawn = {axes.get_title(loc="left"): axes for axes in figure.axes}
    for panel in panels(path, models=["kjv", "mnist"], window="1m"):
        axes = drawn[panel.title]
        assert axes.lines or axes.collections or axes.texts, panel.title


def test_a_row_that_is_not_there_cannot_be_drawn():
    with pytest.raises(ValueError, match="thoughts has no row Feelings"):
        draw(DASHBOARDS[-1], Remembered(), end=1e9, minutes=10, rows=["Feelings"])
