"""`python -m benchmarks.saturation`: what a server does as more and more is asked of it, up to what it can do and past.

First a closed loop finds what it can do; then requests arrive at random at shares of that rate, whether or not the
server keeps up. Latencies begin when a request should have been sent. A table, then one line of JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.arm import IN_FLIGHT
from benchmarks.hardware import inspect
from benchmarks.models import shipped
from benchmarks.options import add_data_options
from benchmarks.report import load_table, wide_console
from benchmarks.served import put_load
from benchmarks.server import ServerProcess
from benchmarks.statistics import Slice, Summary, summarise

_PATIENCE_SECONDS = 20.0
_LEAST_ARRIVALS = 20  # that a share is expected to offer: a slow server's load lasts longer


def main(argv: Sequence[str] | None = None) -> int:
    """Sweep the shipped model's server."""
    options = _parser().parse_args(argv)
    console, hardware = wide_console(), inspect()
    subject = shipped(options.store, options.data_dir)
    with tempfile.TemporaryDirectory(prefix="ctm-bench-") as folder:
        workload = Path(folder) / "workload.npz"
        subject.workload.save(workload)
        with ServerProcess(subject.store, subject.bundle.name) as server:
            parts = sweep(server, workload, options.shares, options.seconds, options.seed)
    rows = [(offered, summarise([part])) for offered, part in parts]
    console.print(load_table(rows))
    print(json.dumps(describe(rows) | {"benchmark": "saturation", "hardware": asdict(hardware)}))
    return 0


def sweep(
    server: ServerProcess, workload: Path, shares: Sequence[float], seconds: float, seed: int
) -> list[tuple[str, Slice]]:
    """What was offered and what came of it; the closed loop first."""
    closed = put_load(server, workload, ["--concurrency", str(IN_FLIGHT), "--seconds", str(seconds)], seconds)
    capacity = closed.thoughts / closed.seconds
    parts = [(f"{IN_FLIGHT} in flight", closed)]
    for share in shares:
        rate = capacity * share
        lasting = max(seconds, _LEAST_ARRIVALS / rate)
        arrivals = ["--rate", f"{rate:.3f}", "--poisson", "--seed", str(seed), "--seconds", f"{lasting:.3f}"]
        patience = ["--patience", str(_PATIENCE_SECONDS)]
        part = put_load(server, workload, [*arrivals, *patience], lasting + _PATIENCE_SECONDS)
        parts.append((f"{rate:,.0f}/s, {share:.0%}", part))
    return parts


def describe(rows: Sequence[tuple[str, Summary]]) -> dict[str, object]:
    return {"loads": [{"offered": offered, **asdict(summary)} for offered, summary in rows]}


def _shares(text: str) -> list[float]:
    return [float(share) for share in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.saturation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_data_options(parser)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load [%(default)s]")
    parser.add_argument(
        "--shares",
        type=_shares,
        default=[0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 2.0],
        metavar="SHARE,...",
        help="of what the closed loop reached [0.25,0.5,0.75,0.9,1,1.25,2]",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals [%(default)s]")
    return parser


if __name__ == "__main__":
    sys.exit(main())
