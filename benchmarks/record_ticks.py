"""`python -m benchmarks.record_ticks`: write down how many ticks the shipped model uses, for the synthetic one."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.models import RECORDED, mnist_test, newest, think_through
from benchmarks.options import add_data_options
from benchmarks.workload import default_workload


def main(argv: Sequence[str] | None = None) -> int:
    """Think about every digit of the test set once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record_ticks", description=main.__doc__)
    add_data_options(parser)
    parser.add_argument("--output", type=Path, default=RECORDED, help="where to write [%(default)s]")
    options = parser.parse_args(argv)
    bundle = newest(options.store, "mnist")
    images, labels = mnist_test(options.data_dir)
    workload = default_workload(bundle.manifest, {bundle.program.inputs[0].name: images}, labels)
    ticks_used, right = think_through(bundle, workload)
    document = {
        "model": str(bundle),
        "data": "MNIST, test set",
        "certainty_threshold": round(workload.threshold, 6),
        "mean_ticks": float(ticks_used.mean()),
        "accuracy": float(right.mean()),
        "thoughts_by_ticks_used": np.bincount(ticks_used, minlength=bundle.manifest.ticks + 1)[1:].tolist(),
    }
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
