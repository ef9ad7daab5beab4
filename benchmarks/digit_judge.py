"""`python -m benchmarks.digit_judge`: train the judges of samples, and see whether they can be trusted.

One judge for each size of image, learned from MNIST's training rows and measured on those held out: how many digits it
knows, and how far its features find the two halves of the held-out rows apart, against images that were damaged.
Prints a table, then everything as one line of JSON; the judges stand in `runs/digit-judge`.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from benchmarks.hardware import inspect
from benchmarks.options import add_mnist_option
from benchmarks.report import wide_console
from ctm.diffusion.digit_judge import (
    SIDES,
    DigitJudge,
    JudgeConfig,
    judge_images,
    pooled,
    recognised,
    save_judge,
)
from ctm.diffusion.frechet import frechet_distance
from ctm.tasks import Rows, TaskConfig, load_task
from export.commit import describe_commit

# Shapes: N rows, S side.

RESULTS = Path(__file__).with_name("results")
ROWS = 128
"""In a batch."""
NOISE = (0.1, 0.2, 0.4)
"""Standard deviations of the noise in damaged images, of pixels in [0, 1]."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, keep and print; save results if asked to."""
    options = _parser().parse_args(argv)
    console, hardware = wide_console(), inspect()
    task = load_task(TaskConfig(name="mnist"), options.data_dir)
    train = task.train if options.rows is None else _First(task.train, options.rows)
    found: dict[str, dict[str, Any]] = {}
    for side in options.sides:
        began = time.monotonic()
        judge = train_judge(train, JudgeConfig(side=side), epochs=options.epochs, seed=options.seed)
        seconds = time.monotonic() - began
        path = options.runs / f"judge-{side}.safetensors"
        save_judge(judge, path)
        found[str(side)] = {
            "file": path.name,
            "weights": sum(weight.numel() for weight in judge.parameters()),
            "seconds": round(seconds, 1),
            "held_out": measure(judge, task.held_out, options.seed),
        }
        if options.test:
            found[str(side)]["test"] = measure(judge, task.test, options.seed)
    console.print(judges_table(found))
    document = {
        "benchmark": "digit_judge",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(Path(__file__).parent),
        "hardware": asdict(hardware),
        "torch": torch.__version__,
        "seed": options.seed,
        "epochs": options.epochs,
        "judges": found,
    }
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        path = options.save / f"digit-judge_{hardware.slug}_{datetime.now(UTC):%Y%m}.json"
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))
    return 0


def train_judge(rows: Rows, config: JudgeConfig, *, epochs: int, seed: int, rate: float = 4e-3) -> DigitJudge:
    """A judge that has seen every row `epochs` times, shifted by a pixel of 28 or not, in an order of the seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = DigitJudge(config)
    batches = len(rows) // ROWS
    optimiser = torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * batches, pct_start=0.25)
    for _ in range(epochs):
        order_N = torch.randperm(len(rows), generator=generator)
        for indices in torch.split(order_N[: batches * ROWS], ROWS):
            inputs, targets = rows.take(indices)
            logits = judge(pooled(_shifted(inputs, generator), config.side)).logits
            optimiser.zero_grad()
            nn.functional.cross_entropy(logits, targets, label_smoothing=0.05).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            schedule.step()
    return judge.eval()


def measure(judge: DigitJudge, rows: Rows, seed: int) -> dict[str, Any]:
    """How many digits are known, and the distance of one half of the rows from the other, whole and damaged."""
    inputs, targets = rows.take(torch.arange(len(rows)))
    pixels_NSS = pooled(inputs, judge.config.side)
    verdict = judge_images(judge, pixels_NSS)
    half = len(rows) // 2
    reference = verdict.features[:half]

    def distance(images: Tensor) -> float:
        return frechet_distance(reference, judge_images(judge, images[half : 2 * half]).features)

    noise_NSS = torch.randn(pixels_NSS.shape, generator=torch.Generator().manual_seed(seed))
    return {
        "rows": len(rows),
        "accuracy": recognised(verdict.logits, targets).share,
        "by_digit": recognised(verdict.logits, targets).by_class,
        "distance_of_halves": distance(pixels_NSS),
        "distance_with_noise": {
            str(deviation): distance((pixels_NSS + deviation * noise_NSS).clamp(0, 1)) for deviation in NOISE
        },
        "accuracy_with_noise": {
            str(deviation): recognised(
                judge_images(judge, (pixels_NSS + deviation * noise_NSS).clamp(0, 1)).logits, targets
            ).share
            for deviation in NOISE
        },
    }


def judges_table(found: dict[str, dict[str, Any]]) -> Table:
    """One line a judge and part."""
    table = Table(title="Judges of digits", title_justify="left", title_style="bold")
    for column in ("side", "rows", "weights", "trained in", "right", "distance of halves"):
        table.add_column(column, justify="right")
    for deviation in NOISE:
        table.add_column(f"noise {deviation}", justify="right")
    for side, judge in found.items():
        for part in ("held_out", "test"):
            if part in judge:
                seen = judge[part]
                damaged = (
                    f"{seen['distance_with_noise'][str(deviation)]:.2f}, "
                    f"{100 * seen['accuracy_with_noise'][str(deviation)]:.2f} %"
                    for deviation in NOISE
                )
                table.add_row(
                    f"{side} x {side}",
                    f"{seen['rows']:,} {part.replace('_', '-')}",
                    f"{judge['weights']:,}",
                    f"{judge['seconds']:.0f} s",
                    f"{100 * seen['accuracy']:.2f} %",
                    f"{seen['distance_of_halves']:.3f}",
                    *damaged,
                )
    return table


class _First:
    """The first rows of others."""

    def __init__(self, rows: Rows, count: int) -> None:
        self.take, self._count = rows.take, min(count, len(rows))

    def __len__(self) -> int:
        return self._count


def _shifted(inputs_N1AA: Tensor, generator: torch.Generator) -> Tensor:
    """The whole batch by at most a pixel in each direction; digits have that much room."""
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return inputs_N1AA.roll((down, right), (2, 3))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digit_judge", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_mnist_option(parser)
    parser.add_argument("--sides", nargs="+", type=int, choices=SIDES, default=[28, 14], help="of images [28 14]")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the training rows [%(default)s]")
    parser.add_argument("--rows", type=int, help="learn from the first so many only [all]")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order [%(default)s]")
    parser.add_argument("--runs", type=Path, default=Path("runs/digit-judge"), help="holds the judges [%(default)s]")
    parser.add_argument("--test", action="store_true", help="measure on the test rows too")
    parser.add_argument(
        "--save", type=Path, nargs="?", const=RESULTS, metavar="FOLDER", help="write results [benchmarks/results]"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
