"""Pack bundles for TorchServe: `python -m deploy.torchserve model_store/mnist --output archives`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.torchserve.archive import Settings, ToolMissing, write_archive, write_config
from serving.bundle import Bundle, load_bundle
from serving.errors import BundleRefused
from serving.store import find


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 when every bundle was packed."""
    options = _parser().parse_args(argv)
    try:
        settings = Settings(
            backend=options.backend,
            num_slots=options.slots,
            batch_size=options.batch_size,
            batch_delay_ms=options.batch_delay,
            workers=options.workers,
            response_timeout_seconds=options.response_timeout,
            grpc_streams=options.grpc_streams,
        )
        options.output.mkdir(parents=True, exist_ok=True)
        for folder in options.bundles:
            print(write_archive(_load(folder), options.output, settings))
        print(write_config(options.output))
    except (BundleRefused, ToolMissing, OSError, ValueError) as error:
        print(f"deploy.torchserve: {error}", file=sys.stderr)
        return 1
    return 0


def _load(folder: Path) -> Bundle:
    """The bundle in `<store>/<name>/<version>`, or the newest of `<store>/<name>`."""
    folder = folder.resolve()
    if not (folder / "manifest.json").exists():
        versions = find(folder.parent)[0].get(folder.name)
        if not versions:
            raise BundleRefused(f"{folder}: got no bundle, expected <store>/<name> or <store>/<name>/<version>")
        folder = versions[max(versions)]
    return load_bundle(folder)


def _parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = argparse.ArgumentParser(prog="python -m deploy.torchserve", description=__doc__.partition(":")[0] + ".")
    parser.add_argument(
        "bundles", metavar="BUNDLE", nargs="+", type=Path, help="<store>/<name>, or <store>/<name>/<version>"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, required=True, help="for the archives and config.properties"
    )
    parser.add_argument(
        "--backend",
        choices=("onnx", "torchscript"),
        default=default.backend,
        help=f"[{default.backend}]; torchscript graphs are code: trust who wrote the bundle",
    )
    for flag, value, meaning in (
        ("--slots", default.num_slots, "thoughts that tick together"),
        ("--batch-size", default.batch_size, "requests that TorchServe hands over at once, at most"),
        ("--batch-delay", default.batch_delay_ms, "milliseconds that the first of them waits for others"),
        ("--workers", default.workers, "processes of each model"),
        (
            "--response-timeout",
            default.response_timeout_seconds,
            "seconds after which TorchServe kills a worker that has not answered",
        ),
    ):
        parser.add_argument(flag, metavar="N", type=int, default=value, help=f"{meaning} [{value}]")
    parser.add_argument(
        "--grpc-streams",
        action="store_true",
        help="let gRPC's StreamPredictions stream; see README.md for what a wrong call then does",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
