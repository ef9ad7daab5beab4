"""The commands that need torch: where it is missing they say which extra brings it.

Serving installs without torch, and the commands are there all the same.
"""

import sys
from importlib import import_module

OURS = ("ctm", "export", "serving", "protos")


def train() -> int:
    return _run("ctm-train", "ctm.training.cli", extra="train")


def ingest() -> int:
    return _run("ctm-ingest", "ctm.language.ingest", extra="train")


def export() -> int:
    return _run("ctm-export", "export.cli", extra="export")


def _run(program: str, module: str, *, extra: str) -> int:
    """Exit status: the command's, or 2 where a package that it needs is missing."""
    try:
        main = import_module(module).main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OURS:
            raise
        print(
            f"{program} needs {error.name}, which is not installed: pip install 'ctm-serving[{extra}]'", file=sys.stderr
        )
        return 2
    status: int = main()
    return status
