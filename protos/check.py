"""Check that the generated code is what the .proto files give: `python -m protos.check`."""

import os
import sys
import tempfile
from pathlib import Path

from protos.generate import ROOT, main


def stale() -> list[str]:
    """Names of generated files that differ from what the .proto files give, or that nothing generates."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if main(out) != 0:
            raise SystemExit("protoc failed")
        fresh = {path.name: path.read_bytes() for path in (out / "protos").iterdir()}
    kept = {path.name: path.read_bytes() for path in (ROOT / "protos").glob("*_pb2*")}
    return sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))


if __name__ == "__main__":
    # protoc finds its plugins beside the interpreter that runs this.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if names := stale():
        sys.exit(f"generated code is out of date: {', '.join(names)}; run `make protos`")
    print("generated code is up to date")
