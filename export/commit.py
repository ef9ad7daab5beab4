"""Which code it was: the commit of a checkout."""

import subprocess
from pathlib import Path


def describe_commit(folder: Path) -> str:
    """Of the checkout that a folder is in, with a mark if it was changed since; empty outside of one."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
