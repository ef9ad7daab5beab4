"""Reader of recorded reference runs: `<name>.json` says what was run, `<name>.safetensors` what came out.

A tensor's name is `<group>/<name>`: `w` weights, `in` inputs, `out` and `track` what was seen, `grad` gradients,
`loss` losses. Large random weights are not stored but listed under `generated`, to be made again and checked by hash.
The folder is the environment variable CTM_GOLDEN_DIR.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

FOLDER = os.environ.get("CTM_GOLDEN_DIR")


@dataclass(frozen=True)
class Recording:
    """One file: its facts and its tensors by group."""

    meta: dict[str, Any]
    groups: dict[str, dict[str, np.ndarray]]

    @property
    def tolerance(self) -> float:
        return float(self.meta["suggested_tolerance"]["tol"])

    def group(self, name: str) -> dict[str, np.ndarray]:
        return self.groups.get(name, {})


def names(where: Callable[[dict[str, Any]], bool] = lambda _: True) -> list[Any]:
    """Every recording whose facts satisfy `where`, as pytest parameters; one skipped parameter without a folder."""
    if not FOLDER:
        return [pytest.param("", id="none", marks=pytest.mark.skip(reason="CTM_GOLDEN_DIR is not set"))]
    facts = {path.stem: json.loads(path.read_text()) for path in sorted(Path(FOLDER).glob("*.json"))}
    assert facts, f"CTM_GOLDEN_DIR={FOLDER} holds no recordings"
    return [pytest.param(name, id=name) for name, meta in facts.items() if where(meta)]


def load(name: str) -> Recording:
    assert FOLDER, "CTM_GOLDEN_DIR is not set"
    meta = json.loads((Path(FOLDER) / f"{name}.json").read_text())
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key, value in load_file(Path(FOLDER) / f"{name}.safetensors").items():
        group, _, rest = key.partition("/")
        groups.setdefault(group, {})[rest] = value
    for key, made in meta.get("generated", {}).items():
        weight = mixed_integers(made["shape"], made["seed"]) * np.float32(made["scale"])
        weight = (np.float32(made["offset"]) + weight).astype(np.float32)
        digest = hashlib.sha256(weight.tobytes()).hexdigest()
        assert digest == made["sha256"], f"{name}: {key} was not made as it was recorded"
        groups.setdefault("w", {})[key] = weight
    return Recording(meta, groups)


def mixed_integers(shape: list[int], seed: int) -> np.ndarray:
    """Float32 in [-1, 1) from a 32-bit integer hash of the position: the same bits on every machine."""
    with np.errstate(over="ignore"):  # Arithmetic modulo 2^32 is the point.
        word = np.arange(int(np.prod(shape)), dtype=np.uint32) * np.uint32(0x9E3779B1)
        word += np.uint32((seed * 40503 + 12345) % 2**32)
        for factor in (0x45D9F3B, 0x45D9F3B, 1):
            word ^= word >> np.uint32(16)
            word *= np.uint32(factor)
    unit = (word >> np.uint32(8)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    return unit.reshape(shape)


def scaled_difference(ours: np.ndarray, recorded: np.ndarray) -> float:
    """Largest difference over max(1, largest recorded value): the unit of `suggested_tolerance`."""
    assert ours.shape == recorded.shape, f"shape {ours.shape}, recorded {recorded.shape}"
    assert np.isfinite(ours).all(), "not finite"
    largest = np.abs(recorded).max(initial=1)
    return float(np.abs(ours.astype(np.float64) - recorded).max(initial=0) / largest)
