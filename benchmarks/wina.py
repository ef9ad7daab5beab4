"""`python -m benchmarks.wina`: what is lost by dropping inputs of a layer, by WINA's score and by magnitude alone.

At equal sparsity, as a share of the layer's output: on random layers, on layers of a network trained on scikit-learn's
digits, and on attention weights. Takes seconds. Prints a table, then everything as one line of JSON.
"""

# Shapes: B rows, K inputs and N outputs of a layer.

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.hardware import inspect
from benchmarks.report import wide_console
from ctm.diffusion.wina import column_norms, keep_largest, kept
from export.commit import describe_commit

RESULTS = Path(__file__).with_name("results")
SPARSITIES = (0.25, 0.5, 0.65, 0.8)
ROWS, INPUTS, OUTPUTS = 500, 128, 96
"""Of random layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One layer with inputs that it may meet."""

    name: str
    weight: Tensor
    """[N, K]"""
    inputs: Tensor
    """[B, K]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """Relative output errors, one for each of `SPARSITIES`."""

    name: str
    norm_spread: float
    """Standard deviation of the column norms over their mean."""
    wina: list[float]
    magnitude: list[float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and save if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wina", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of everything random [0]")
    parser.add_argument("--save", type=Path, nargs="?", const=RESULTS, metavar="FOLDER", help="write a results file")
    options = parser.parse_args(argv)
    hardware = inspect()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        measured = [measure(case) for case in (*random_layers(), *attention_weights(), *trained_layers())]
    wide_console().print(_table(measured))
    document = {
        "benchmark": "wina",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(Path(__file__).parent),
        "hardware": asdict(hardware),
        "seed": options.seed,
        "sparsities": SPARSITIES,
        "cases": [asdict(losses) for losses in measured],
    }
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        path = options.save / f"wina_{hardware.slug}_{datetime.now(UTC):%Y%m}.json"
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))
    return 0


def random_layers() -> Iterator[Case]:
    """Normal inputs; columns of one length, then of lengths drawn log-normally, then inputs of one sign."""
    weight, inputs = F.normalize(torch.randn(OUTPUTS, INPUTS), dim=0), torch.randn(ROWS, INPUTS)
    yield Case(name="random, equal norms", weight=weight, inputs=inputs)
    for deviation in (0.5, 1.0):
        scaled = weight * (deviation * torch.randn(INPUTS)).exp()
        yield Case(name=f"random, log-normal norms, deviation {deviation}", weight=scaled, inputs=inputs)
        yield Case(name="  the same, inputs all positive", weight=scaled, inputs=inputs.abs())
        together = scaled + 0.3 * scaled.norm(dim=0) * F.normalize(torch.randn(OUTPUTS, 1), dim=0)
        yield Case(name="  and columns alike", weight=together, inputs=inputs.abs())


def attention_weights() -> Iterator[Case]:
    """Weights of attention are to values what inputs are to columns."""
    weights = (torch.randn(ROWS, 16) @ torch.randn(16, INPUTS) / 4).softmax(-1)
    values = torch.randn(16, INPUTS)
    yield Case(name="attention weights, random values", weight=values, inputs=weights)
    scaled = values * (0.5 * torch.randn(INPUTS)).exp()
    yield Case(name="attention weights, values of many lengths", weight=scaled, inputs=weights)


def trained_layers() -> Iterator[Case]:
    """Of networks that have learned the digits, from pixels around their mean and from pixels as they are."""
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target)
    for name, inputs in (("centred pixels", (images - images.mean(0)) / 8), ("raw pixels", images / 16)):
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.003, weight_decay=1e-4)
        for _ in range(300):
            loss = F.cross_entropy(model(inputs[:1200]), labels[:1200])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
        x = inputs[1200:]
        for depth, layer in enumerate(model):
            if isinstance(layer, nn.Linear):
                where = f"trained on digits, {name}, layer {depth // 2 + 1}"
                yield Case(name=where, weight=layer.weight.detach(), inputs=x.detach())
            x = layer(x)


def measure(case: Case) -> Losses:
    """Both ways of choosing, at every sparsity."""
    norms_K = column_norms(case.weight)
    wina, magnitude = (
        [relative_error(case, case.inputs.abs() * factor, sparsity) for sparsity in SPARSITIES]
        for factor in (norms_K, torch.ones_like(norms_K))
    )
    spread = float(norms_K.std() / norms_K.mean())
    return Losses(name=case.name, norm_spread=spread, wina=wina, magnitude=magnitude)


def relative_error(case: Case, scores_BK: Tensor, sparsity: float) -> float:
    """‖sparse - dense‖ over ‖dense‖, of all rows together."""
    keep_BK = keep_largest(scores_BK, kept(scores_BK.shape[-1], sparsity))
    dense_BN = case.inputs @ case.weight.T
    lost_BN = (case.inputs * ~keep_BK) @ case.weight.T
    return float(torch.linalg.vector_norm(lost_BN) / torch.linalg.vector_norm(dense_BN))


def _table(measured: Sequence[Losses]) -> Table:
    table = Table(title="Relative output error, WINA / magnitude alone; bold: WINA loses more")
    table.add_column("layer")
    table.add_column("spread of norms", justify="right")
    for sparsity in SPARSITIES:
        table.add_column(f"{sparsity:.0%} dropped", justify="right")
    for losses in measured:
        pairs = zip(losses.wina, losses.magnitude, strict=True)
        cells = (f"{'[bold]' if ours > theirs else ''}{ours:.3f} / {theirs:.3f}" for ours, theirs in pairs)
        table.add_row(losses.name, f"{losses.norm_spread:.2f}", *cells)
    return table


if __name__ == "__main__":
    sys.exit(main())
