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
    whole: float | None = None
    """Share of the rows that are right at every position at their most certain tick; None, as the next two, where an
    answer has but one position."""
    whole_by_tick: list[float] | None = None
    unpadded_by_tick: list[float] | None = None
    """Accuracy at the positions that do not only fill a shorter answer up."""

    @property
    def score(self) -> float:
        """By which the best checkpoint is chosen; higher is better."""
        return self.accuracy

    def scalars(self) -> dict[str, float]:
        """What is drawn over the course of a run."""
        scalars = {
            "accuracy": self.accuracy,
            "mean_answer_tick": self.mean_answer_tick,
            "accuracy_first_tick": self.accuracy_by_tick[0],
            "accuracy_last_tick": self.accuracy_by_tick[-1],
            "certainty_last_tick": self.certainty_by_tick[-1],
        }
        return scalars if self.whole is None else scalars | {"whole": self.whole}

    def sentence(self) -> str:
        """For the log."""
        sentence = (
            f"held-out accuracy {self.accuracy:.4f} at the most certain tick, "
            f"{self.accuracy_by_tick[0]:.4f} at the first, {self.accuracy_by_tick[-1]:.4f} at the last"
        )
        return sentence if self.whole is None else f"{sentence}; {self.whole:.2%} right as a whole"


def evaluate(
    model: CTM, rows: Rows, batch_size: int, accelerator: Accelerator | None = None, *, padding: int | None = None
) -> Evaluation:
    """Think about all rows for all ticks; of several processes each does its share, and all get the same numbers.

    Args:
        padding: the label that fills an answer up, as the task says.
    """
    positions = len(model.config.answer_shape) > 1
    if accelerator is None or accelerator.num_processes == 1:
        return summarise(judge(model, rows, batch_size=batch_size, padding=padding), positions=positions)
    mine = share_of_process(len(rows), accelerator)
    judged = judge(model, rows, batch_size=batch_size, indices=mine, padding=padding)
    judged_N5T = torch.from_numpy(np.stack(judged, axis=1))
    everyone_N5T: Tensor = accelerator.gather(judged_N5T.to(accelerator.device))
    return summarise(Judged(*everyone_N5T[: len(rows)].cpu().numpy().swapaxes(0, 1)), positions=positions)


def share_of_process(rows: int, accelerator: Accelerator) -> Tensor:
    """The numbers of the rows that this process judges, int64; all processes have equally many.

    Past the end the last row is judged again, which is cut off where all are gathered.
    """
    share = -(-rows // accelerator.num_processes)
    first = accelerator.process_index * share
    return torch.arange(first, first + share).clamp(max=rows - 1)


def summarise(judged: Judged, *, positions: bool = False) -> Evaluation:
    """The numbers of what was judged; `positions`: whether an answer has several."""
    correct_NT, certainty_NT, confidence_NT, whole_NT, unpadded_NT = judged
    _, answer_N = stopping(certainty_NT, NEVER)
    return Evaluation(
        rows=len(answer_N),
        accuracy=most_certain_accuracy(certainty_NT, correct_NT),
        mean_answer_tick=float(answer_N.mean() + 1),
        accuracy_by_tick=correct_NT.mean(axis=0, dtype=np.float64).tolist(),
        certainty_by_tick=certainty_NT.astype(np.float64).mean(axis=0).tolist(),
        calibration_error_by_tick=calibration_error(confidence_NT, correct_NT).tolist(),
        frontier=frontier(certainty_NT, correct_NT, whole_NT=whole_NT if positions else None),
        whole=most_certain_accuracy(certainty_NT, whole_NT) if positions else None,
        whole_by_tick=whole_NT.mean(axis=0, dtype=np.float64).tolist() if positions else None,
        unpadded_by_tick=unpadded_NT.mean(axis=0, dtype=np.float64).tolist() if positions else None,
    )
