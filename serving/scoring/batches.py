"""Tables scored batch by batch, columns in and columns out: what Ray Data's `map_batches` wants of an actor."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from serving.client import AnswerOptions, Result
from serving.local import LocalThinker, find_bundle
from serving.request import Array
from serving.scoring.lines import Layout
from serving.scoring.rows import RowMaker
from serving.scoring.score import score
from serving.settings import BackendConfig, EngineConfig
from serving.terminal.kinds import shows_positions, single_thoughts

_TYPES: dict[str, tuple[type[np.generic], object]] = {
    "certainty": (np.float32, np.nan),
    "ticks_used": (np.int32, 0),
    "answer_tick": (np.int32, 0),
    "abstained": (np.bool_, False),
}
"""What failed rows have instead; columns of texts and lists have None."""


class BatchScorer:
    """A model in this process, and a call that scores a batch. Make it once; one thread calls it at a time.

    Args:
        store: a folder of published models, where this process runs.
        column: that holds the model's input; what may stand in it: see `RowMaker.from_value`.
        logits: give the whole predictions, too.
        keep: columns to be handed on; all of them when None.
        options: which version, when to stop, and the like.

    Raises, when it is made:
        BundleRefused, InstallationLacks: the model cannot be used.
        UnfitInput: it takes several inputs, or makes chains of thoughts.
    """

    def __init__(
        self,
        store: str,
        model: str,
        *,
        column: str,
        logits: bool = False,
        keep: Sequence[str] | None = None,
        backend: BackendConfig | None = None,
        engine: EngineConfig | None = None,
        **options: Unpack[AnswerOptions],
    ) -> None:
        bundle = find_bundle(Path(store), model, options.get("version", 0))
        kind = single_thoughts(bundle.manifest)
        self._column, self._keep = column, keep
        self._maker = RowMaker(kind)
        self._layout = partial(Layout, positions=shows_positions(kind), logits=logits)
        self._loop = asyncio.Runner()
        self._thinker = LocalThinker(bundle, backend=backend, engine=engine)
        self._loop.run(self._thinker.__aenter__())
        self._input, self._options = kind.spec.name, options
        self._said = [name for name in self._layout().names() if name not in ("source", "row")]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The kept columns, and those of `lines.OURS` but source and row.

        A row that failed says why under `error`, and has no prediction, no certainty (NaN) and no ticks (0).

        Raises:
            ThinkError: the model takes nothing that is asked with these options.
            KeyError: there is no such column.
        """
        names = [name for name in batch if name != self._column] if self._keep is None else self._keep
        kept = {name: batch[name] for name in names}
        lines = self._loop.run(self._lines(batch[self._column], self._layout(kept=names)))
        return kept | {name: _column(name, [line[name] for line in lines]) for name in self._said}

    def close(self) -> None:
        """End the engine; nothing follows."""
        self._loop.run(self._thinker.__aexit__(None, None, None))
        self._loop.close()

    async def _lines(self, values: Sequence[Any], layout: Layout) -> list[dict[str, Any]]:
        rows = (self._maker.from_value(self._column, index, value) for index, value in enumerate(values))
        async with aclosing(score(rows, self._ask)) as outcomes:
            return [layout.line(outcome) async for outcome in outcomes]

    async def _ask(self, values: Array) -> Result:
        return await self._thinker.answer({self._input: values}, **self._options)


def _column(name: str, values: list[Any]) -> Array:
    """Of one type also where rows failed: a table made of many batches must not change its mind."""
    kind, missing = _TYPES.get(name, (np.object_, None))
    filled = [missing if value is None else value for value in values]
    if kind is not np.object_:
        return np.array(filled, kind)
    column = np.empty(len(filled), np.object_)  # of lists as long as each other, `np.array` would make a matrix
    column[:] = filled
    return column
