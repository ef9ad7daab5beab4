"""`python -m benchmarks.linear_attention`: what linear attention costs by length, beside full softmax attention.

One head, one row, no gradients: counted operations of matrix products, the most memory held by tensors at once, and
the time of the fastest of a few runs, for our attention, for softmax over a matrix of all pairs, and for torch's fused
softmax, which forms no such matrix. Then how far ours is from softmax by how many keys are exact, on keys of which a
few score high. Wants a machine that does nothing else. Prints tables, then everything as one line of JSON.
"""

# Shapes: L tokens, K width of a head.

import argparse
import json
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.hardware import inspect
from benchmarks.report import wide_console
from ctm.diffusion.linear_attention import attend, attend_causally
from export.commit import describe_commit

RESULTS = Path(__file__).with_name("results")
LENGTHS = (1024, 2048, 4096, 8192, 16384)
EXACT = (0, 4, 16, 64)
"""Near keys that are tried."""
_LOUD = 16
"""Keys that score high, where errors are measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Of one attention at one length."""

    arm: str
    length: int
    operations: int | None
    """Multiplications and additions of matrix products, as torch counts them; None for a kernel that it does not."""
    peak_bytes: int
    """Of everything that was alive at once, beyond the inputs."""
    seconds: float
    """The fastest run."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type its modes
    """Counts the bytes of tensors made under it that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor what they are made with
        self.now = self.peak = 0
        self._held: dict[int, list[int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = function(*args, **(kwargs or {}))
        given = {id_of(x) for x in args if isinstance(x, Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and (id_of(tensor) in self._held or id_of(tensor) not in given):
                self._hold(tensor)
        return result

    def _hold(self, tensor: Tensor) -> None:
        """A storage is held as long as any of its tensors."""
        key, size = id_of(tensor), tensor.untyped_storage().nbytes()
        if key not in self._held:
            self._held[key] = [0, size]
            self.now += size
            self.peak = max(self.peak, self.now)
        self._held[key][0] += 1
        weakref.finalize(tensor, self._release, key)

    def _release(self, key: int) -> None:
        self._held[key][0] -= 1
        if not self._held[key][0]:
            self.now -= self._held.pop(key)[1]


def id_of(tensor: Tensor) -> int:
    """Of what a tensor looks at."""
    return tensor.untyped_storage().data_ptr()


def softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Over a matrix of all pairs."""
    return (query @ key.transpose(-1, -2)).softmax(-1) @ value


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)


def linear(query: Tensor, key: Tensor, value: Tensor, *, exact: int = 16) -> Tensor:
    nothing = torch.zeros(len(key), key.shape[-2], dtype=torch.bool)
    return attend(query, key, value, nothing, exact=exact, threshold=1.0)


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    nothing = torch.zeros(len(key), key.shape[-2], dtype=torch.bool)
    return attend_causally(query, key, value, nothing, block=64, threshold=1.0)


ARMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "softmax": softmax,
    "fused softmax": fused,
    "linear": linear,
    "linear, causal": causal,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and save if asked to."""
    options = _parser().parse_args(argv)
    console, hardware = wide_console(), inspect()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        costs = [
            measure(arm, length, options.width, options.runs) for length in options.lengths for arm in options.arms
        ]
        errors = {exact: error(exact, options.width) for exact in EXACT}
    console.print(_table(costs, options.arms))
    console.print(f"Error against softmax, {_LOUD} keys of high scores among 1024, by how many are exact:", errors)
    document = {
        "benchmark": "linear_attention",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(Path(__file__).parent),
        "hardware": asdict(hardware),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "width": options.width,
        "costs": [asdict(cost) for cost in costs],
        "error_by_exact": errors,
    }
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        path = options.save / f"linear-attention_{hardware.slug}_{datetime.now(UTC):%Y%m}.json"
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))
    return 0


def measure(arm: str, length: int, width: int, runs: int) -> Cost:
    """Operations, memory and time, each in runs of their own."""
    given = _given(length, width)
    run = ARMS[arm]
    with FlopCounterMode(display=False) as counter:
        run(*given)
    with LiveBytes() as live:
        run(*given)
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        run(*given)
        seconds.append(time.perf_counter() - began)
    return Cost(
        arm=arm, length=length, operations=counter.get_total_flops() or None, peak_bytes=live.peak, seconds=min(seconds)
    )


def error(exact: int, width: int) -> float:
    """‖linear - softmax‖ over ‖softmax‖, where a few keys are eight times as long as the others."""
    query, key, value = _given(1024, width)
    key[:, :, :_LOUD] *= 8.0
    expected = softmax(query, key, value)
    difference = linear(query, key, value, exact=exact) - expected
    return float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(expected))


def _given(length: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (torch.randn(1, 1, length, width) for _ in range(3))
    return F.normalize(query, dim=-1), F.normalize(key, dim=-1), value


def _table(costs: Sequence[Cost], arms: Sequence[str]) -> Table:
    table = Table(title="operations / peak memory / time, and their ratios to the first arm's")
    table.add_column("tokens", justify="right")
    for arm in arms:
        table.add_column(arm, justify="right")
    by_place = {(cost.length, cost.arm): cost for cost in costs}
    for length in sorted({cost.length for cost in costs}):
        first, *others = (by_place[length, arm] for arm in arms)
        table.add_row(f"{length:,}", _cell(first), *(f"{_cell(cost)}\n{_ratios(cost, first)}" for cost in others))
    return table


def _cell(cost: Cost) -> str:
    operations = f"{cost.operations / 1e6:,.0f} M" if cost.operations else "not counted"
    return f"{operations} / {cost.peak_bytes / 2**20:,.1f} MiB / {1000 * cost.seconds:,.1f} ms"


def _ratios(cost: Cost, first: Cost) -> str:
    operations = f"{cost.operations / first.operations:.3f}" if cost.operations and first.operations else "-"
    return f"x {operations} / {cost.peak_bytes / first.peak_bytes:.3f} / {cost.seconds / first.seconds:.3f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.linear_attention", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens [1024 to 16384]")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="[all]")
    parser.add_argument("--width", type=int, default=16, help="of queries, keys and values of the head [%(default)s]")
    parser.add_argument("--runs", type=int, default=5, help="of which the fastest counts [%(default)s]")
    parser.add_argument("--save", type=Path, nargs="?", const=RESULTS, metavar="FOLDER", help="write a results file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
