"""A diffusion model whose arithmetic fits in the head: small, but a whole program with a finish.

Its thoughts grow more certain by 0.2 a tick, faster for larger labels. A reverse step halves the image, adds what the
thought was guided by unless it abstained, and adds eta times the noise.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict

from protos.ctm_bundle_pb2 import Manifest
from serving.backends.base import Backend
from serving.bundle import Bundle
from serving.diffusion.model import diffusion_model
from serving.manifest import check, program, stop_defaults
from serving.program import Program

HEIGHT, WIDTH, BINS = 2, 3, 4
LEVELS, STEPS, TICKS = 10, 4, 4
CLASSES = ["plain", "quick", "spoilt", "wild"]
SPOILT, WILD = 2, 3
"""Labels: the one's reverse step, the other's thought is not finite from the middle level down."""
IMAGE = [HEIGHT, WIDTH]

_SEEN = [
    {"name": "image", "datatype": "FP32", "shape": IMAGE},
    {"name": "level", "datatype": "INT64", "shape": [], "minimum": 0, "maximum": LEVELS - 1},
    {"name": "label", "datatype": "INT64", "shape": [], "minimum": 0, "maximum": len(CLASSES) - 1},
    {"name": "links", "datatype": "FP32", "shape": [1]},
]
_SAID = [
    {"name": "prediction", "datatype": "FP32", "shape": [HEIGHT * WIDTH, BINS], "role": "PREDICTION"},
    {"name": "certainty", "datatype": "FP32", "shape": [], "role": "CERTAINTY"},
    {"name": "guide", "datatype": "FP32", "shape": [2]},
]
MANIFEST: dict[str, Any] = {
    "format_version": 1,
    "name": "dots",
    "version": 1,
    "family": "none",
    "task": "dots",
    "inputs": _SEEN,
    "context": [{"name": "seen", "datatype": "FP32", "shape": IMAGE}, *_SEEN[1:3]],
    "state": [{"name": "ticks_done", "datatype": "INT64", "shape": []}],
    "outputs": _SAID,
    "ticks": TICKS,
    "tick_cap": TICKS,
    "stop": {"certainty_threshold": 0.9},
    "artefacts": [
        {"backend": "onnx", "graphs": {name: f"{name}.onnx" for name in ("encode", "tick", "finish")}},
    ],
    "finish_inputs": [
        *_SEEN,
        {"name": "next_level", "datatype": "INT64", "shape": [], "minimum": -1, "maximum": LEVELS - 2},
        {"name": "eta", "datatype": "FP32", "shape": [], "minimum": 0, "maximum": 1},
        {"name": "noise", "datatype": "FP32", "shape": IMAGE},
        {"name": "abstained", "datatype": "BOOL", "shape": [], "role": "ABSTAINED"},
        *_SAID,
    ],
    "finish_outputs": [
        {"name": "next_image", "datatype": "FP32", "shape": IMAGE},
        {"name": "estimate", "datatype": "FP32", "shape": IMAGE},
        {"name": "next_links", "datatype": "FP32", "shape": [1]},
    ],
    "chain": "diffusion",
    "diffusion": {"levels": LEVELS, "steps": STEPS, "eta": 0.5, "classes": CLASSES},
}
START = {"ticks_done": np.zeros((), np.int64)}


def diffusion_bundle(**changes: Any) -> Bundle:
    """A bundle as if it had been loaded."""
    manifest = ParseDict({**MANIFEST, **changes}, Manifest())
    check(manifest)
    described = program(manifest)
    whole = Program(
        inputs=described.inputs,
        context=described.context,
        state=described.state,
        start=START,
        prediction=described.prediction,
        certainty=described.certainty,
        outputs=described.outputs,
        finish=described.finish,
    )
    return Bundle(
        path=Path("nowhere"),
        name=manifest.name,
        version=manifest.version,
        manifest=manifest,
        program=whole,
        labels=(),
        stop=stop_defaults(manifest),
        abstain_below=manifest.stop.abstain_below,
        tick_cap=manifest.tick_cap,
        diffusion=diffusion_model(manifest, whole),
    )


BUNDLE = diffusion_bundle()


def certainty_of(label: int, tick: int) -> float:
    return min(0.2 * tick * (1 + 0.5 * label), 1.0)


class ScriptedDiffusion(Backend):
    """Fails on demand; counts how many rows each finish was asked for."""

    def __init__(self, num_slots: int = 4, max_admissions: int = 8, *, seconds_per_tick: float = 0.0) -> None:
        super().__init__(BUNDLE.program, num_slots, max_admissions)
        self.fail_next_finish = False
        self.seconds_per_tick = seconds_per_tick
        self.num_ticks = 0
        self.finished_rows: list[int] = []

    def _encode(self, rows: int, sizes: tuple[int, ...]) -> None:
        arguments = self.arguments(rows, sizes)
        for name, source in {"seen": "image", "level": "level", "label": "label"}.items():
            self._encoded[name][:rows] = arguments[source]

    def _tick(self, rows: int, side: int, details: bool) -> None:
        del details
        self.num_ticks += 1
        time.sleep(self.seconds_per_tick)
        context, out = self._context, self._outputs[1 - side]
        label, level = context["label"][:rows], context["level"][:rows]
        tick = self._state[side]["ticks_done"][:rows] + 1
        out["certainty"][:rows] = np.minimum(0.2 * tick * (1 + 0.5 * label), 1.0)
        pixels = context["seen"][:rows].reshape(rows, -1, 1)
        out["prediction"][:rows] = pixels * np.arange(BINS, dtype=np.float32)
        out["prediction"][:rows][(label == WILD) & (level < LEVELS // 2)] = np.nan
        out["guide"][:rows] = np.stack([tick, label], axis=1)
        self._state[1 - side]["ticks_done"][:rows] = tick

    def finish(self, slots: Any, abstained: Any) -> Any:
        self.finished_rows.append(len(slots))
        return super().finish(slots, abstained)

    def _finish(self, rows: int) -> None:
        if self.fail_next_finish:
            self.fail_next_finish = False
            raise RuntimeError("told to fail")
        found = {name: values[:rows] for name, values in self._finish_arguments.items()}
        guided = np.where(found["abstained"], 0.0, found["guide"][:, 0]).astype(np.float32)
        image = 0.5 * found["image"] + guided[:, None, None]
        image += found["eta"][:, None, None] * found["noise"]
        image[(found["label"] == SPOILT) & (found["level"] < LEVELS // 2)] = np.inf
        self._finished["next_image"][:rows] = image
        self._finished["estimate"][:rows] = found["image"] - found["level"][:, None, None]
        self._finished["next_links"][:rows] = found["links"] + 1
