"""`python -m benchmarks.load`: put load on a server and say how it did; a table, then one line of JSON.

--concurrency N              closed loop: N callers, each of whom asks again when answered
--rate R [--poisson]         open loop: R requests a second, whatever the server does
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import grpc
import numpy as np
import uvloop

from benchmarks import workload as workloads
from benchmarks.arrivals import arrivals
from benchmarks.callers import Caller, StreamCaller, ThinkCaller
from benchmarks.generator import closed_loop, count_outcomes, open_loop
from benchmarks.report import load_table, wide_console
from benchmarks.server_side import ServerWatch
from benchmarks.statistics import Slice, summarise
from benchmarks.workload import Workload, random_workload
from serving.client import AsyncClient, ThinkError

_RANDOM_ROWS = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 when the server cannot be reached or nothing was answered."""
    options = _parser().parse_args(argv)
    console = wide_console()
    try:
        part = uvloop.run(measure(options))
    except (ThinkError, grpc.RpcError, OSError, ValueError) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 1
    summary = summarise([part])
    console.print(load_table([(_offered(options), summary)]))
    if options.output:
        options.output.write_text(json.dumps(to_json(part)))
    print(json.dumps(asdict(summary)))
    return 0 if part.thoughts else 1


async def measure(options: argparse.Namespace) -> Slice:
    """Run one measure as the command line describes it."""
    workload = workloads.load(options.workload) if options.workload else await _random(options)
    if options.model:
        workload = replace(workload, model=options.model)
    watch = ServerWatch(options.metrics, workload.model) if options.metrics else None

    async def probe() -> None:
        if watch is not None:
            await watch.look()

    kind: type[Caller] = StreamCaller if options.one_call else ThinkCaller
    async with kind(options.address, workload, every_tick=options.every_tick) as caller:
        if options.rate is None:
            outcomes, window = await closed_loop(
                caller.ask,
                len(workload),
                concurrency=options.concurrency,
                seconds=options.seconds,
                warm_up_seconds=options.warm_up,
                probe=probe,
                first_row=options.first_row,
                patience_seconds=options.patience,
            )
        else:
            await caller.ask(0)  # so that no request pays for opening the connection
            times = arrivals(options.rate, options.seconds, poisson=options.poisson, seed=options.seed)
            outcomes, window = await open_loop(
                caller.ask,
                len(workload),
                times,
                seconds=options.seconds,
                patience_seconds=options.patience,
                probe=probe,
            )
    return count_outcomes(outcomes, window, workload, watch.between() if watch else None)


async def _random(options: argparse.Namespace) -> Workload:
    if not options.model:
        raise ValueError("say --model, or give rows to think about with --workload")
    async with AsyncClient(options.address) as client:
        manifest = await client.get_model(options.model)
    return random_workload(manifest, _RANDOM_ROWS, options.seed)


def to_json(part: Slice) -> dict[str, object]:
    """A slice for another process; `from_json` reads it."""
    return {**asdict(part), "latencies": part.latencies.tolist()}


def from_json(document: dict[str, object]) -> Slice:
    # What `to_json` wrote has the fields and their types.
    return Slice(**{**document, "latencies": np.array(document["latencies"], np.float64)})  # type: ignore[arg-type]


def _offered(options: argparse.Namespace) -> str:
    if options.rate is None:
        return f"{options.concurrency} in flight"
    return f"{options.rate:g}/s" + (" Poisson" if options.poisson else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description="Put load on a server.")
    parser.add_argument("--address", default="127.0.0.1:50051", help="where the server listens [%(default)s]")
    parser.add_argument("--model", default="", help="name of a served model")
    parser.add_argument("--workload", type=Path, metavar="FILE", help="rows to think about; random ones without")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument("--concurrency", type=int, default=64, metavar="N", help="closed loop of N callers [%(default)s]")
    loop.add_argument("--rate", type=float, metavar="R", help="open loop of R requests a second")
    parser.add_argument("--poisson", action="store_true", help="arrivals at random, R a second on average")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals and of random rows [%(default)s]")
    parser.add_argument(
        "--first-row", type=int, default=0, metavar="N", help="to begin with, closed loop [%(default)s]"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="to measure for [%(default)s]")
    parser.add_argument(
        "--warm-up", type=float, default=0.5, metavar="SECONDS", help="before, closed loop [%(default)s]"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="to wait afterwards; closed loop: for one answer [%(default)s]",
    )
    parser.add_argument("--every-tick", action="store_true", help="stream every tick, not answers only")
    parser.add_argument("--one-call", action="store_true", help="one ThinkStream call instead of a Think call each")
    parser.add_argument("--metrics", metavar="URL", help="the server's /metrics, for its processor time and occupancy")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the measure with every latency, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
