"""Command line options that several benchmarks have."""

import argparse
import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Where the shipped model and its test set are."""
    parser.add_argument(
        "--store", type=Path, default=_ROOT / "model_store", help="folder of published models [%(default)s]"
    )
    add_mnist_option(parser)


def add_mnist_option(parser: argparse.ArgumentParser) -> None:
    """Where MNIST is."""
    found = os.environ.get("CTM_MNIST_DIR")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(found) if found else None,
        help="folder with MNIST's four files; else CTM_MNIST_DIR, else they are fetched",
    )


def add_save_option(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Whether results are written down, and where."""
    parser.add_argument(
        "--save", type=Path, nargs="?", const=folder, metavar="FOLDER", help="write results [benchmarks/results]"
    )
