"""Write the dashboards from the Python that describes them: `python -m deploy.grafana.generate` (`--check` compares).

It needs what requirements.txt names, nothing else does: the files that it writes are committed.
"""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Panel, RowPanel

from deploy.grafana.server import server
from deploy.grafana.thoughts import thoughts

FOLDER = Path(__file__).parent / "dashboards"


def text(builder: Dashboard) -> str:
    """A dashboard as Grafana reads it, its panels numbered from 1."""
    dashboard = builder.build()
    for number, panel in enumerate(dashboard.panels or [], start=1):
        assert isinstance(panel, Panel | RowPanel), f"{panel} is no panel"
        panel.id_val = number
    for variable in dashboard.templating.list_val or []:  # the builder gives every variable what only intervals have
        variable.auto = variable.auto_min = variable.auto_count = None
    return json.dumps(dashboard, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main(check: bool) -> int:
    """Exit status 1 if `check` and a file is not what it should be."""
    differs = False
    for name, builder in (("thoughts", thoughts()), ("server", server())):
        path, new = FOLDER / f"{name}.json", text(builder)
        if path.exists() and path.read_text() == new:
            continue
        differs = True
        if check:
            print(f"{path} is out of date: run `python -m deploy.grafana.generate`", file=sys.stderr)
        else:
            path.write_text(new)
    return int(check and differs)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
