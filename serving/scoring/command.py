"""What `ctm-think --input FILES --output FILE` does: a data set scored, with its progress and a last line of sums."""

import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from serving.client import AnswerOptions, AsyncClient, Result
from serving.local import LocalThinker, find_bundle
from serving.mismatch import Mismatch
from serving.request import Array
from serving.scoring.lines import Layout
from serving.scoring.rows import RowMaker
from serving.scoring.score import ROWS_IN_FLIGHT, Ask, Outcome, score
from serving.scoring.sinks import writing
from serving.scoring.sources import Columns, all_rows, count_rows, find_files
from serving.terminal.arguments import Options
from serving.terminal.image_files import CannotWrite
from serving.terminal.images import UnfitInput
from serving.terminal.kinds import Kind, shows_positions, single_thoughts

_NAMED = 10
"""Failed rows that are named on the way; the file names them all."""


@dataclass(slots=True)
class Sums:
    """What has been told so far."""

    rows: int = 0
    failed: int = 0
    abstained: int = 0
    inverted: int = 0
    ticks: int = 0
    begin: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        self.rows += 1
        self.inverted += outcome.row.inverted
        if outcome.answer is None:
            self.failed += 1
        else:
            self.abstained += outcome.answer.abstained
            self.ticks += outcome.answer.ticks_used

    @property
    def mean_ticks(self) -> float:
        answered = self.rows - self.failed
        return self.ticks / answered if answered else 0.0

    def sentence(self) -> str:
        seconds = time.monotonic() - self.begin
        return (
            f"{self.rows} rows: {self.rows - self.failed} answered, {self.abstained} of them abstained, "
            f"{self.failed} failed; {self.mean_ticks:.2f} ticks used on average; "
            f"{seconds:.1f} s, {self.rows / max(seconds, 1e-9):,.0f} rows/s"
        )


async def score_files(options: Options) -> int:
    """Score every row; the exit status: 1 when any failed.

    Raises:
        UnfitInput: a file is not there, or the model does not score.
        CannotWrite, ThinkError, BundleRefused, InstallationLacks: nothing was written.
    """
    assert options.output is not None, "the parser asks for it"
    paths, columns = find_files(options.data), Columns(input=options.column, kept=options.keep)
    if options.output.exists() and any(options.output.samefile(path) for path in paths):
        raise CannotWrite(f"{options.output}: is read as an input, so it is not written over")
    async with _asking(options) as (kind, ask):
        maker = RowMaker(kind, invert=options.invert)
        try:
            layout = Layout(positions=shows_positions(kind), logits=options.logits, kept=options.keep)
        except Mismatch as error:
            raise UnfitInput(str(error)) from error
        sums = Sums()
        outcomes = score(all_rows(paths, maker, columns), ask, in_flight=options.in_flight or ROWS_IN_FLIGHT)
        with writing(options.output, layout) as sink, _progress() as progress:
            total = None if progress.disable else count_rows(paths, maker, columns)
            task = progress.add_task(f"{kind.manifest.name}/{kind.manifest.version}", total=total, ticks=0.0)
            async with aclosing(outcomes):
                async for outcome in outcomes:
                    sink.write(layout.line(outcome))
                    sums.add(outcome)
                    progress.update(task, completed=sums.rows, ticks=sums.mean_ticks)
                    if outcome.answer is None and sums.failed <= _NAMED:
                        progress.console.print(_named(outcome), markup=False, highlight=False, soft_wrap=True)
    print(f"{sums.sentence()} -> {options.output}")
    if sums.inverted:
        _note(f"{sums.inverted} pictures have a light border, so they were inverted; --no-invert keeps them")
    if sums.failed > _NAMED:
        _note(f"{sums.failed} rows failed; column error of {options.output} says why")
    return 1 if sums.failed else 0


@asynccontextmanager
async def _asking(options: Options) -> AsyncIterator[tuple[Kind, Ask]]:
    """The model, in this process if there is a store, else on a server, and how to ask it."""
    how: AnswerOptions = {
        "threshold": options.threshold,
        "min_ticks": options.min_ticks,
        "max_ticks": options.max_ticks,
        "patience": options.patience,
        "abstain_below": options.abstain_below,
        "timeout": options.timeout,
        "top_k": 1,
    }
    if options.store is not None:
        bundle = find_bundle(options.store, options.model, options.version)
        kind = single_thoughts(bundle.manifest)
        async with LocalThinker(bundle) as thinker:

            async def ask(values: Array) -> Result:
                return await thinker.answer({kind.spec.name: values}, **how)

            yield kind, ask
        return
    async with AsyncClient(options.address) as client:
        manifest = await client.get_model(options.model, options.version)
        kind = single_thoughts(manifest)
        how["version"] = manifest.version  # that a newer one, published meanwhile, does not go on with the rest
        async with client.session() as session:

            async def ask(values: Array) -> Result:
                return await session.answer(manifest.name, {kind.spec.name: values}, **how)

            yield kind, ask


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[ticks]:.2f} ticks"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _named(outcome: Outcome) -> str:
    source, error = outcome.row.source, outcome.error
    return f"ctm-think: {error if Path(source).name in error else f'{source}: {error}'}"


def _note(sentence: str) -> None:
    print(f"ctm-think: {sentence}", file=sys.stderr)
