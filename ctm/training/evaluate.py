"""How well a model thinks: accuracy, certainty and calibration by tick, and what early stopping would give."""
# Shapes: N rows, T ticks.

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ctm.calibration import calibration_error
from ctm.frontier import NEVER, FrontierPoint, frontier, most_certain_accuracy, stopping
from ctm.judge import Judged, judge
from ctm.model import CTM
from ctm.tasks import Rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A model's numbers on some rows; the lists run over the ticks."""

    rows: int
    accuracy: float
    """Of each row's most certain tick."""
    mean_answer_tick: float
    """Of the most certain tick, counted from 1."""
    accuracy_by_tick: list[float]
    certainty_by_tick: list[float]
    calibration_error_by_tick: list[float]
    frontier: tuple[FrontierPoint, ...]

    @property
    def score(self) -> float:
        """By which the best checkpoint is chosen; higher is better."""
        return self.accuracy

    def scalars(self) -> dict[str, float]:
        """What is drawn over the course of a run."""
        return {
            "accuracy": self.accuracy,
            "mean_answer_tick": self.mean_answer_tick,
            "accuracy_first_tick": self.accuracy_by_tick[0],
            "accuracy_last_tick": self.accuracy_by_tick[-1],
            "certainty_last_tick": self.certainty_by_tick[-1],
        }

    def sentence(self) -> str:
        """For the log."""
        return (
            f"held-out accuracy {self.accuracy:.4f} at the most certain tick, "
            f"{self.accuracy_by_tick[0]:.4f} at the first, {self.accuracy_by_tick[-1]:.4f} at the last"
        )


def evaluate(model: CTM, rows: Rows, batch_size: int, accelerator: Accelerator | None = None) -> Evaluation:
    """Think about all rows for all ticks; of several processes each does its share, and all get the same numbers."""
    if accelerator is None or accelerator.num_processes == 1:
        return summarise(judge(model, rows, batch_size=batch_size))
    share = -(-len(rows) // accelerator.num_processes)
    first = accelerator.process_index * share
    # Past the end the last row is judged again, so that all shares are equally long; it is cut off below.
    mine = torch.arange(first, first + share).clamp(max=len(rows) - 1)
    judged_N3T = torch.from_numpy(np.stack(judge(model, rows, batch_size=batch_size, indices=mine), axis=1))
    everyone_N3T: Tensor = accelerator.gather(judged_N3T.to(accelerator.device))
    return summarise(Judged(*everyone_N3T[: len(rows)].cpu().numpy().swapaxes(0, 1)))


def summarise(judged: Judged) -> Evaluation:
    correct_NT, certainty_NT, confidence_NT = judged
    _, answer_N = stopping(certainty_NT, NEVER)
    return Evaluation(
        rows=len(answer_N),
        accuracy=most_certain_accuracy(certainty_NT, correct_NT),
        mean_answer_tick=float(answer_N.mean() + 1),
        accuracy_by_tick=correct_NT.mean(axis=0, dtype=np.float64).tolist(),
        certainty_by_tick=certainty_NT.astype(np.float64).mean(axis=0).tolist(),
        calibration_error_by_tick=calibration_error(confidence_NT, correct_NT).tolist(),
        frontier=frontier(certainty_NT, correct_NT),
    )
