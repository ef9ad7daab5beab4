"""A model whose thoughts are written in its input: each tick reads out the next entry of the row's script.

Small, but a whole program: it encodes, has a state, and runs on the same slots as every other backend.
"""

import threading
import time
from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Backend
from serving.chain import Chain
from serving.events import Answer, Summary
from serving.program import Program, TensorSpec
from serving.request import AnswerRule, Request, StopPolicy, StreamPolicy

TICKS = 8
CLASSES = 3
FP32, INT64 = np.dtype(np.float32), np.dtype(np.int64)

_SCRIPT = (
    TensorSpec("certainties", FP32, (TICKS,)),
    TensorSpec("energies", FP32, (TICKS,)),
    TensorSpec("done", FP32, (TICKS,)),
    TensorSpec("predictions", FP32, (TICKS, CLASSES)),
)
_OUTPUTS = (
    TensorSpec("prediction", FP32, (CLASSES,)),
    TensorSpec("certainty", FP32, ()),
    TensorSpec("energy", FP32, ()),
    TensorSpec("done_now", FP32, ()),
    TensorSpec("place", FP32, (1,)),
)
PROGRAM = Program(
    inputs=_SCRIPT,
    context=_SCRIPT,
    state=(TensorSpec("ticks_done", INT64, ()),),
    start={"ticks_done": np.zeros((), np.int64)},
    prediction=_OUTPUTS[0],
    certainty=_OUTPUTS[1],
    energy=_OUTPUTS[2],
    done=_OUTPUTS[3],
    details=(_OUTPUTS[4],),
    outputs=_OUTPUTS,
)


class Paused(Backend):
    """In front of a scripted backend: once `before` ticks have been run, the next waits until `go_on` is set."""

    before = 0
    num_ticks: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.go_on = threading.Event()

    def _tick(self, rows: int, side: int, details: bool) -> None:
        if self.num_ticks == self.before:
            assert self.go_on.wait(120), "nobody let it go on"
        super()._tick(rows, side, details)


class Gate:
    """Lets as many ticks pass as the test says."""

    def __init__(self, ticks: float = inf) -> None:
        self._left = ticks
        self._changed = threading.Condition()

    def let(self, ticks: float) -> None:
        """Let so many more pass."""
        with self._changed:
            self._left += ticks
            self._changed.notify()

    def open(self) -> None:
        """Let all pass from now on."""
        self.let(inf)

    def pass_one(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._left > 0, 200), "nobody let this tick pass"
            self._left -= 1


class ScriptedBackend(Backend):
    """Runs scripts; fails on demand.

    Args:
        held: no tick passes before the test opens the gate.
    """

    def __init__(
        self, num_slots: int, max_admissions: int = 8, *, seconds_per_tick: float = 0.0, held: bool = False
    ) -> None:
        super().__init__(PROGRAM, num_slots, max_admissions)
        self.fail_next_encode = self.fail_next_tick = False
        self.seconds_per_tick = seconds_per_tick
        self.gate = Gate(0 if held else inf)
        self.num_ticks = 0

    def _encode(self, rows: int, sizes: tuple[int, ...]) -> None:
        if self.fail_next_encode:
            self.fail_next_encode = False
            raise RuntimeError("told to fail")
        for name, values in self.arguments(rows, sizes).items():
            self._encoded[name][:rows] = values

    def _tick(self, rows: int, side: int, details: bool) -> None:
        if self.fail_next_tick:
            self.fail_next_tick = False
            raise RuntimeError("told to fail")
        self.gate.pass_one()
        self.num_ticks += 1
        time.sleep(self.seconds_per_tick)
        place = self._state[side]["ticks_done"][:rows]
        entry = np.minimum(place, TICKS - 1)
        index = np.arange(rows)
        out = self._outputs[1 - side]
        out["certainty"][:rows] = self._context["certainties"][index, entry]
        out["energy"][:rows] = self._context["energies"][index, entry]
        out["done_now"][:rows] = self._context["done"][index, entry]
        out["prediction"][:rows] = self._context["predictions"][index, entry]
        if details:
            out["place"][:rows, 0] = place
        self._state[1 - side]["ticks_done"][:rows] = place + 1


def script(
    certainties: list[float],
    *,
    classes: list[int] | None = None,
    energies: list[float] | None = None,
    done_at: int | None = None,
    nan_at: int | None = None,
) -> dict[str, NDArray[Any]]:
    """One row. The prediction of tick k (from 1) is k at `classes[k - 1]` and 0 elsewhere."""
    certainty = np.array((certainties + [certainties[-1]] * TICKS)[:TICKS], np.float32)
    chosen = ((classes or [0]) + [(classes or [0])[-1]] * TICKS)[:TICKS]
    prediction = np.zeros((TICKS, CLASSES), np.float32)
    prediction[np.arange(TICKS), chosen] = np.arange(1, TICKS + 1)
    if nan_at is not None:
        prediction[nan_at - 1, 0] = np.nan
    energy = np.array(((energies or [100.0]) + [(energies or [100.0])[-1]] * TICKS)[:TICKS], np.float32)
    done = np.zeros(TICKS, np.float32)
    if done_at is not None:
        done[done_at - 1] = 1
    return {
        "certainties": certainty[None],
        "energies": energy[None],
        "done": done[None],
        "predictions": prediction[None],
    }


class ScriptedChain:
    """Chains whose links are written down: each row's later thoughts, one script each."""

    def __init__(self, *rows: list[dict[str, NDArray[Any]]], fails: str = "") -> None:
        self.rows = rows
        self.fails = fails
        self.texts = [""] * len(rows)

    def follow(self, answer: Answer) -> Mapping[str, NDArray[Any]] | None:
        if self.fails == "follow":
            raise RuntimeError("told to fail")
        answer.text = f"{answer.link} "
        self.texts[answer.row] += answer.text
        links = self.rows[answer.row]
        return links[answer.link] if answer.link < len(links) else None

    def finish(self, summary: Summary) -> None:
        if self.fails == "finish":
            raise RuntimeError("told to fail")
        summary.seed, summary.texts = 7, self.texts


def request(
    *rows: dict[str, NDArray[Any]],
    request_id: str = "r",
    every: int = 0,
    stream: StreamPolicy | None = None,
    answer_rule: AnswerRule = AnswerRule.MOST_CERTAIN,
    abstain_below: float = 0.0,
    priority: int = 0,
    deadline: float = float("inf"),
    arrival: float = 0.0,
    chain: Chain | None = None,
    **stop: Any,
) -> Request:
    """A request of one script a row; `stop` are fields of `StopPolicy`."""
    return Request(
        request_id=request_id,
        inputs={name: np.concatenate([row[name] for row in rows]) for name in rows[0]},
        rows=len(rows),
        stop=StopPolicy(**({"max_ticks": TICKS} | stop)),
        stream=stream or StreamPolicy(every=every),
        answer_rule=answer_rule,
        abstain_below=abstain_below,
        priority=priority,
        deadline=deadline,
        arrival=arrival,
        chain=chain,
    )
