"""What the numbers were measured on, and whether anything else was running."""

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

_BUSY = 0.3
"""Load average, of one minute, above which something else is running."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """The machine, and how busy it was before the run."""

    cpu: str
    cores: int
    """That this process may use."""
    memory_gb: float
    system: str
    versions: dict[str, str]
    load_average: float
    """Of the last minute, at the beginning."""

    @property
    def busy(self) -> bool:
        return self.load_average > _BUSY

    @property
    def slug(self) -> str:
        """For file names: intel-xeon-processor-2-cores."""
        words = re.sub(r"\((r|tm)\)|@.*|\bcpu\b", " ", self.cpu.lower())
        name = re.sub(r"[^a-z0-9.]+", "-", words).strip("-")
        return f"{name or 'cpu'}-{self.cores}-core{'s' if self.cores != 1 else ''}"


def inspect() -> Hardware:
    """This machine, now."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        cpu=_cpu(),
        cores=cores,
        memory_gb=round(memory / 2**30, 1),
        system=platform.platform(aliased=True, terse=True),
        versions={"python": platform.python_version()} | {name: version(name) for name in ("onnxruntime", "grpcio")},
        load_average=os.getloadavg()[0],
    )


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()
