"""`ctm-serve`: read the settings, serve until told to stop."""

import sys
from collections.abc import Sequence

import uvloop

import serving.logs
from serving.config import load_config
from serving.errors import BundleRefused
from serving.server import Server


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; returns the exit status: 0 after a drain, 1 when it cannot start."""
    config = load_config(sys.argv[1:] if argv is None else argv)
    serving.logs.configure(config.log_level, config.log_format)
    try:
        uvloop.run(Server(config).run())
    except (BundleRefused, OSError, ValueError) as error:
        print(f"ctm-serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
