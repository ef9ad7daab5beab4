"""The model card (stub)."""

from pathlib import Path

from protos.ctm_bundle_pb2 import Manifest


def write_card(manifest: Manifest, folder: Path) -> None:
    (folder / "README.md").write_text(f"# {manifest.name}\n")
