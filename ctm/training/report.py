"""What a run tells of itself: a progress bar, a JSON line a report, TensorBoard scalars, a plot an evaluation."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ctm.training.evaluate import Evaluation
from ctm.training.plot import plot_evaluation, save_plot

LOG = "log.jsonl"


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

    def evaluation(self, update: int, evaluation: Evaluation, best: bool) -> None:
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
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)  # type: ignore[no-untyped-call]  # untyped in torch
        # disable=None: no bar where nobody watches it move.
        self._bar = tqdm(total=updates, initial=done, unit="update", disable=None, dynamic_ncols=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._log.close()
        self._board.close()  # type: ignore[no-untyped-call]  # untyped in torch

    def advance(self) -> None:
        self._bar.update()

    def report(self, update: int, scalars: dict[str, float]) -> None:
        self._write({"event": "report", "update": update, **scalars})
        self._draw(update, {f"train/{name}": value for name, value in scalars.items()})
        shown = {
            "loss": f"{scalars['loss']:.4f}",
            "accuracy": f"{scalars['accuracy']:.4f}",
            "ticks/s": f"{scalars['ticks_per_second']:,.0f}",
        }
        self._bar.set_postfix(shown, refresh=False)
        if self._bar.disable:
            self.say(f"update {update}/{self._updates}  " + "  ".join(f"{key} {value}" for key, value in shown.items()))

    def evaluation(self, update: int, evaluation: Evaluation, best: bool) -> None:
        self._write({"event": "evaluation", "update": update, "best": best, **dataclasses.asdict(evaluation)})
        scalars = {
            "held_out/accuracy": evaluation.accuracy,
            "held_out/mean_answer_tick": evaluation.mean_answer_tick,
            "held_out/accuracy_first_tick": evaluation.accuracy_by_tick[0],
            "held_out/accuracy_last_tick": evaluation.accuracy_by_tick[-1],
            "held_out/certainty_last_tick": evaluation.certainty_by_tick[-1],
        }
        self._draw(update, scalars)
        figure = plot_evaluation(evaluation, f"{self._folder.name}, update {update}, {evaluation.rows} held-out rows")
        save_plot(figure, self._folder / "plots" / f"update-{update:06d}.png")
        self.say(
            f"update {update}: held-out accuracy {evaluation.accuracy:.4f} at the most certain tick, "
            f"{evaluation.accuracy_by_tick[0]:.4f} at the first, {evaluation.accuracy_by_tick[-1]:.4f} at the last"
            + (", the best so far" if best else "")
        )

    def say(self, sentence: str) -> None:
        tqdm.write(sentence, file=sys.stderr)

    def _write(self, line: dict[str, Any]) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    def _draw(self, update: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._board.add_scalar(name, value, update)  # type: ignore[no-untyped-call]  # untyped in torch
        self._board.flush()  # type: ignore[no-untyped-call]  # untyped in torch


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
