"""The plots (stub)."""

from pathlib import Path

from export.quality import Quality


def write_plots(quality: Quality, folder: Path) -> None: ...
