"""What a run tells of itself: a progress bar, a JSON line a report, TensorBoard scalars, a plot an evaluation."""

import dataclasses
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from ctm.training.evaluate import Evaluation
from ctm.training.evaluate_diffusion import DiffusionEvaluation
from ctm.training.evaluate_text import TextEvaluation
from ctm.training.plot import plot_diffusion, plot_evaluation, plot_text, save_plot

LOG = "log.jsonl"
AnyEvaluation = Evaluation | TextEvaluation | DiffusionEvaluation


class Reporter:
    """Tells nobody anything: what all processes but the first have."""

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def advance(self) -> None:
        """One more update is done."""

    def report(self, update: int, scalars: dict[str, float]) -> None:
        """How training went since the last report; `scalars` hold loss, accuracy and ticks_per_second at least."""

    def evaluation(self, update: int, evaluation: AnyEvaluation, best: bool) -> None:
        """What held-out rows say."""

    def say(self, sentence: str) -> None:
        """For the person in front of the terminal."""


class FolderReporter(Reporter):
    """Writes into a run's folder and shows a bar where there is a terminal, a line a report where there is none."""

    def __init__(self, folder: Path, done: int, updates: int) -> None:
        """Continue the log after update `done`; what an interrupted run wrote of later updates is taken back."""
        folder.mkdir(parents=True, exist_ok=True)
        _take_back(folder / LOG, done)
        self._folder, self._updates = folder, updates
        self._log = (folder / LOG).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"))
        # Where nobody watches it move there is no bar.
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._whole = self._bar.add_task("training", total=updates, completed=done, shown="")
        self._bar.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._log.close()
        self._board.close()

    def advance(self) -> None:
        self._bar.advance(self._whole)

    def report(self, update: int, scalars: dict[str, float]) -> None:
        self._write({"event": "report", "update": update, **scalars})
        self._draw(update, {f"train/{name}": value for name, value in scalars.items()})
        shown = (
            f"loss {scalars['loss']:.4f}  accuracy {scalars['accuracy']:.4f}  "
            f"{scalars['ticks_per_second']:,.0f} ticks/s"
        )
        self._bar.update(self._whole, shown=shown)
        if self._bar.disable:
            self.say(f"update {update}/{self._updates}  {shown}")

    def evaluation(self, update: int, evaluation: AnyEvaluation, best: bool) -> None:
        self._write({"event": "evaluation", "update": update, "best": best, **dataclasses.asdict(evaluation)})
        self._draw(update, {f"held_out/{name}": value for name, value in evaluation.scalars().items()})
        title = f"{self._folder.name}, update {update}, {evaluation.rows} held-out "
        if isinstance(evaluation, TextEvaluation):
            figure = plot_text(evaluation, title + "tokens")
        elif isinstance(evaluation, DiffusionEvaluation):
            figure = plot_diffusion(evaluation, title + "rows")
        else:
            figure = plot_evaluation(evaluation, title + "rows")
        save_plot(figure, self._folder / "plots" / f"update-{update:06d}.png")
        self.say(f"update {update}: {evaluation.sentence()}" + (", the best so far" if best else ""))

    def say(self, sentence: str) -> None:
        self._console.print(sentence, markup=False)

    def _write(self, line: dict[str, Any]) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    def _draw(self, update: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._board.add_scalar(name, value, update)
        self._board.flush()


def _take_back(log: Path, done: int) -> None:
    """Drop the lines of updates that will be done again, and a line that a killed process left half-written."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if entry["update"] > done:
            break
        kept.append(line + "\n")
    aside = log.with_suffix(".aside")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, log)
