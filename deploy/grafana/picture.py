"""Make docs/dashboard.png: a real server under real load, seen by a real Prometheus, for some minutes.

python -m deploy.grafana.picture --minutes 10
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks.server import ServerProcess
from deploy.grafana.draw import draw
from deploy.grafana.read import DASHBOARDS
from deploy.prometheus.load import MODELS, busy
from deploy.prometheus.local import LocalPrometheus

ROOT = Path(__file__).resolve().parents[2]

_ROWS = ("Ticks used", "How thoughts end")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make docs/dashboard.png.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    (thoughts,) = (path for path in DASHBOARDS if path.stem == "thoughts")
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(ROOT / "model_store", ",".join(MODELS), ["--engine.num-slots", "8"]) as server,
    ):
        target = server.metrics.removeprefix("http://").removesuffix("/metrics")
        with LocalPrometheus(target, Path(folder), interval="5s") as local:
            asyncio.run(busy(server.address, minutes=arguments.minutes))
            figure = draw(thoughts, local.asked, end=time.time(), minutes=arguments.minutes, rows=_ROWS)
            figure.savefig(arguments.folder / "dashboard.png", dpi=80)


if __name__ == "__main__":
    main()
