"""What is asked in a benchmark: rows to think about, over and over in one order, and when each of them stops."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protos.ctm_bundle_pb2 import Manifest
from serving.manifest import program, stop_defaults
from serving.program import TensorSpec
from serving.request import Array

_INPUT = "input."


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """N rows; thought number i of a run thinks about row i % N."""

    model: str
    inputs: Mapping[str, Array]
    """Each [N, ...]."""
    max_ticks: NDArray[np.int32]
    """[N]; the tick budget of each row."""
    threshold: float = inf
    """Certainty at which a row stops; `inf`: its tick budget alone stops it."""
    labels: NDArray[np.int64] | None = None
    """[N]; the right classes, where they are known."""

    def __post_init__(self) -> None:
        sizes = {name: len(values) for name, values in self.inputs.items()} | {"max_ticks": len(self.max_ticks)}
        if self.labels is not None:
            sizes["labels"] = len(self.labels)
        if len(set(sizes.values())) != 1 or not len(self.max_ticks):
            raise ValueError(f"every array must have the same number of rows, at least one; got {sizes}")
        if self.max_ticks.min() < 1:
            raise ValueError(f"max_ticks must be at least 1, got {self.max_ticks.min()}")

    def __len__(self) -> int:
        return len(self.max_ticks)

    @property
    def stops_by_itself(self) -> bool:
        """Whether certainty stops rows, and not only their budget."""
        return self.threshold < inf

    def correct(self, rows: NDArray[np.int64], answers: NDArray[np.int64]) -> tuple[int, int]:
        """How many of these rows were answered rightly, of how many whose right answer is known."""
        return (0, 0) if self.labels is None else (int((self.labels[rows] == answers).sum()), len(rows))

    def save(self, path: Path) -> None:
        """For a client in another process."""
        arrays: dict[str, Any] = {_INPUT + name: values for name, values in self.inputs.items()}
        arrays |= {"model": np.array(self.model), "threshold": np.array(self.threshold), "max_ticks": self.max_ticks}
        if self.labels is not None:
            arrays["labels"] = self.labels
        np.savez(path, **arrays)


def load(path: Path) -> Workload:
    """What `Workload.save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Workload(
            model=str(file["model"]),
            inputs={name.removeprefix(_INPUT): file[name] for name in file.files if name.startswith(_INPUT)},
            max_ticks=file["max_ticks"],
            threshold=float(file["threshold"]),
            labels=file["labels"] if "labels" in file.files else None,
        )


def random_inputs(specs: Iterable[TensorSpec], rows: int, seed: int) -> dict[str, Array]:
    """Numbers that the model accepts: uniform where its inputs have bounds, else normal, or 0 and 1 for integers."""
    generator = np.random.default_rng(seed)

    def values(spec: TensorSpec) -> Array:
        shape = (rows, *spec.shape)
        if spec.minimum is not None and spec.maximum is not None:
            return generator.uniform(spec.minimum, spec.maximum, shape).astype(spec.dtype)
        if spec.dtype.kind == "f":
            return generator.standard_normal(shape).astype(spec.dtype)
        return generator.integers(0, 2, shape).astype(spec.dtype)

    return {spec.name: values(spec) for spec in specs}


def default_workload(
    manifest: Manifest, inputs: Mapping[str, Array], labels: NDArray[np.int64] | None = None
) -> Workload:
    """These rows, stopped as the bundle's defaults say.

    Raises:
        ValueError: they say more than a certainty threshold and a tick budget: the lockstep arms know no more.
    """
    stop = stop_defaults(manifest)
    if stop.min_ticks > 1 or stop.patience > 1 or stop.energy_threshold > -inf or stop.energy_delta > 0:
        raise ValueError(
            f"{manifest.name} stops by more than certainty and tick budget, which the benchmarks do not know"
        )
    rows = len(next(iter(inputs.values())))
    return Workload(
        model=manifest.name,
        inputs=inputs,
        max_ticks=np.full(rows, stop.max_ticks, np.int32),
        threshold=stop.certainty_threshold,
        labels=labels,
    )


def random_workload(manifest: Manifest, rows: int, seed: int) -> Workload:
    """Random rows for any model."""
    return default_workload(manifest, random_inputs(program(manifest).inputs, rows, seed))
