"""Bundles put into a store as export does: written aside, then there at once, whole."""

import json
import shutil
from pathlib import Path
from typing import Any


def publish_copy(bundle: Path, store: Path, name: str = "tiny", version: int = 1, **fields: Any) -> Path:
    """Publish a copy of a bundle under another name and version.

    Args:
        fields: of the manifest, changed on the way.
    """
    store.mkdir(exist_ok=True)
    aside = store / f".{name}-{version}"
    shutil.copytree(bundle, aside)
    manifest = json.loads((aside / "manifest.json").read_text())
    (aside / "manifest.json").write_text(json.dumps({**manifest, "name": name, "version": version, **fields}))
    (store / name).mkdir(exist_ok=True)
    return aside.rename(store / name / str(version))
