"""Generate the protobuf and gRPC code beside the .proto files: `make protos`.

The oldest supported tools generate it (see `pyproject.toml`), so that old runtimes can load it.
"""

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def main(out: Path) -> int:
    """Write the generated modules below `out`; returns protoc's exit status."""
    sources = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "protos").glob("*.proto"))]
    includes = [f"-I{ROOT}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    targets = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    return int(protoc.main(["protoc", *includes, *targets, *sources]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
