"""What runs a program's graphs, and owns the state of all slots.

    admit(slots, inputs)  encode, and begin at the start state
    tick(n)               one tick of the dense first n slots
    keep(where)           this tick's prediction is the answer so far
    answers(slots)        the predictions kept
    finish(slots)         what happens when thoughts end, where the program has such a thing
    move(source, target)  close a gap

The engine sees rows and numbers; names, tensors and devices stay here.
"""

# Shapes: S slots, n running, k rows of one admission.

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from serving.backends.prefix import Sizes, all_sizes, by_sizes, cuts
from serving.program import Program, TensorSpec
from serving.request import Array


@dataclass(frozen=True, slots=True)
class TickOutput:
    """Views of one tick's results, [n, ...] each; good until the next tick."""

    prediction: Array
    certainty: NDArray[np.float32]
    energy: NDArray[np.float32] | None = None
    done: NDArray[np.bool_] | None = None
    details: Mapping[str, Array] = field(default_factory=dict)


def buckets(limit: int) -> list[int]:
    """Row counts that graphs run at: 2, 4, 6, 8, 12, 16, 24, 32, ... up to the first that holds `limit`.

    Few, because a runtime keeps memory for every shape it has seen. Never one row: its matrix products take another
    path, and a thought alone would differ in its last bits from the same thought in company.
    """
    sizes, size = [2], 4
    while sizes[-1] < limit:
        sizes.append(size)
        if sizes[-1] < limit:
            sizes.append(size * 3 // 2)
        size *= 2
    return sizes


class Backend(ABC):
    """Slots kept in host memory; a runtime fills in `_encode` and `_tick`, and `_finish` for programs that have one.

    State is double-buffered: a tick reads one copy and writes the other, so that no graph writes what it reads, and the
    prediction of the tick before is at hand for a thought that diverges.
    """

    def __init__(self, program: Program, num_slots: int, max_admissions: int) -> None:
        self.program = program
        self.tick_buckets = buckets(num_slots)
        self.encode_buckets = buckets(min(num_slots, max_admissions))
        rows, encode_rows = self.tick_buckets[-1], self.encode_buckets[-1]
        self._inputs = {spec.name: _zeros(spec, encode_rows) for spec in program.inputs}
        self._encoded = {spec.name: _zeros(spec, encode_rows) for spec in program.context}
        self._context = {spec.name: _zeros(spec, rows) for spec in program.context}
        self._state = [{spec.name: _zeros(spec, rows) for spec in program.state} for _ in range(2)]
        self._outputs = [{spec.name: _zeros(spec, rows) for spec in program.outputs} for _ in range(2)]
        self._finish_arguments: dict[str, Array] = {}
        self._finished: dict[str, Array] = {}
        if program.finish is not None:
            self._finish_arguments = {spec.name: _zeros(spec, rows) for spec in program.finish.arguments}
            self._finished = {spec.name: _zeros(spec, rows) for spec in program.finish.results}
        # Of the tick that answers so far: its prediction, and whatever else `finish` reads.
        self._kept = {
            spec.name: _zeros(spec, rows)
            for spec in program.outputs
            if spec.name == program.prediction.name or spec.name in self._finish_arguments
        }
        # Of what each thought began with: what `finish` reads.
        self._began = {
            spec.name: _zeros(spec, rows) for spec in program.beginning if spec.name in self._finish_arguments
        }
        self._cuts = cuts(program)
        self._arguments: dict[tuple[int, Sizes], dict[str, Array]] = {}
        self._side = 0  # the copy that the next tick reads; its results land in the other
        for state in self._state:
            for name, values in state.items():
                values[:] = program.start[name]

    @abstractmethod
    def _encode(self, rows: int, sizes: Sizes) -> None:
        """Fill the first `rows` of `_encoded` from the arguments for these rows and sizes."""

    @abstractmethod
    def _tick(self, rows: int, side: int, details: bool) -> None:
        """Fill the first `rows` of `_state[1 - side]` and `_outputs[1 - side]` from `_context` and `_state[side]`."""

    def _finish(self, rows: int) -> None:
        """Fill the first `rows` of `_finished` from `_finish_arguments`."""
        raise AssertionError(f"{type(self).__name__} runs no finish, {rows} rows of which are asked for")

    def admit(self, slots: Sequence[int], inputs: Mapping[str, Array]) -> None:
        """Encode k rows, [k, ...] for each tensor of the program's beginning, and let them begin in `slots`."""
        for name, values in self._began.items():
            values[np.asarray(slots)] = inputs[name]
        if not self._cuts:
            self._begin(np.asarray(slots), inputs, ())
            return
        for sizes, places in by_sizes(self._cuts, inputs):
            self._begin(np.asarray(slots)[places], {name: values[places] for name, values in inputs.items()}, sizes)

    def _begin(self, slots_k: NDArray[np.intp], inputs: Mapping[str, Array], sizes: Sizes) -> None:
        """Encode rows that are cut alike."""
        count = len(slots_k)
        rows = self.encode_buckets[bisect_left(self.encode_buckets, count)]
        for name, argument in self.arguments(rows, sizes).items():
            values = inputs[name]
            argument[:count] = values if values.shape[1:] == argument.shape[1:] else values[:, : argument.shape[1]]
            argument[count:] = 0
        self._encode(rows, sizes)
        for name, values in self._encoded.items():
            self._context[name][slots_k] = values[:count]
        for name, values in self._state[self._side].items():
            values[slots_k] = self.program.start[name]

    def arguments(self, rows: int, sizes: Sizes) -> dict[str, Array]:
        """What `encode` reads, [rows, ...] each: the beginning of every input's memory, in the shape it is cut to."""
        if (found := self._arguments.get((rows, sizes))) is None:
            found = {name: values[:rows] for name, values in self._inputs.items()}
            for cut, size in zip(self._cuts, sizes, strict=True):
                shape = (rows, size, *found[cut.name].shape[2:])
                found[cut.name] = self._inputs[cut.name].reshape(-1)[: prod(shape)].reshape(shape)
            self._arguments[rows, sizes] = found
        return found

    def tick(self, n: int, *, details: bool = False) -> TickOutput:
        """One tick of slots 0 .. n - 1.

        Args:
            details: whether to bring the program's details along.
        """
        rows = self.tick_buckets[bisect_left(self.tick_buckets, n)]
        self._tick(rows, self._side, details)
        self._side = 1 - self._side
        outputs, program = self._outputs[self._side], self.program
        return TickOutput(
            outputs[program.prediction.name][:n],
            outputs[program.certainty.name][:n],
            outputs[program.energy.name][:n] if program.energy else None,
            outputs[program.done.name][:n].astype(bool) if program.done else None,
            {spec.name: outputs[spec.name][:n] for spec in program.details} if details else {},
        )

    def keep(self, where_n: NDArray[np.bool_]) -> None:
        """Make the last tick's prediction the answer so far, in some of the slots that ticked."""
        n, outputs = len(where_n), self._outputs[self._side]
        for name, kept in self._kept.items():
            np.copyto(kept[:n], outputs[name][:n], where=where_n.reshape(n, *(1,) * (kept.ndim - 1)))

    def keep_previous(self, slots: NDArray[np.intp]) -> None:
        """Make the prediction of the tick before the last one the answer."""
        for name, kept in self._kept.items():
            kept[slots] = self._outputs[1 - self._side][name][slots]

    def answers(self, slots: Sequence[int]) -> Array:
        """The predictions kept, [len(slots), ...], as a copy."""
        kept: Array = self._kept[self.program.prediction.name][np.asarray(slots, np.intp)]
        return kept

    def finish(self, slots: Sequence[int], abstained: Sequence[bool]) -> Mapping[str, Array]:
        """Run the program's finish for k thoughts that have just ended, on what they began with and what was kept.

        Returns:
            Copies, [k, ...] for each result.
        """
        finish = self.program.finish
        assert finish is not None, "the program has no finish"
        count, slots_k = len(slots), np.asarray(slots, np.intp)
        found = {**self._began, **self._kept}
        for name, argument in self._finish_arguments.items():
            argument[:count] = abstained if name == finish.abstained else found[name][slots_k]
            argument[count:] = 0
        self._finish(self.tick_buckets[bisect_left(self.tick_buckets, count)])
        return {name: values[:count].copy() for name, values in self._finished.items()}

    def move(self, source: int, target: int) -> None:
        """Carry a thought from one slot to another, with everything that is its own."""
        for tensors in (self._context, self._state[self._side], self._kept, self._began):
            for values in tensors.values():
                values[target] = values[source]
        for name in self._kept:
            self._outputs[self._side][name][target] = self._outputs[self._side][name][source]

    def warm_up(self) -> None:
        """Run every graph at every row count and size it will see, so that no caller waits for a first run."""
        for rows, sizes in product(self.encode_buckets, all_sizes(self._cuts)):
            self._encode(rows, sizes)
        for rows in self.tick_buckets:
            for side in (0, 1):
                self._tick(rows, side, False)
            if self.program.finish is not None:
                self._finish(rows)
        for state in self._state:
            for name, values in state.items():
                values[:] = self.program.start[name]


def _zeros(spec: TensorSpec, rows: int) -> Array:
    return np.zeros((rows, *spec.shape), spec.dtype)
