"""How well a language model thinks: bits per byte by tick, and what early stopping would give."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ctm.language.judge import JudgedText, TextQuality, judge_text, text_quality
from ctm.language.model import LanguageCTM
from ctm.tasks import Task
from ctm.training.evaluate import share_of_process


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEvaluation:
    """A language model's numbers on held-out text."""

    quality: TextQuality

    @property
    def rows(self) -> int:
        return self.quality.tokens

    @property
    def score(self) -> float:
        """By which the best checkpoint is chosen; higher is better."""
        return -self.quality.bits_per_byte

    def scalars(self) -> dict[str, float]:
        """What is drawn over the course of a run."""
        quality = self.quality
        return {
            "bits_per_byte": quality.bits_per_byte,
            "bits_per_byte_first_tick": quality.bits_per_byte_by_tick[0],
            "bits_per_byte_last_tick": quality.bits_per_byte_by_tick[-1],
            "mean_answer_tick": quality.mean_answer_tick,
            "accuracy_last_tick": quality.accuracy_by_tick[-1],
            "certainty_last_tick": quality.certainty_by_tick[-1],
        }

    def sentence(self) -> str:
        """For the log."""
        quality = self.quality
        return (
            f"held-out bits per byte {quality.bits_per_byte:.4f} at the most certain tick, "
            f"{quality.bits_per_byte_by_tick[0]:.4f} at the first, {quality.bits_per_byte_by_tick[-1]:.4f} at the last"
        )


def evaluate_text(model: LanguageCTM, task: Task, batch_size: int, accelerator: Accelerator) -> TextEvaluation:
    """Think about all held-out text; of several processes each does its share, and all get the same numbers."""
    rows, token_bytes = task.held_out, task.token_bytes
    assert token_bytes is not None, f"task {task.name} knows how many bytes a token stands for"
    if accelerator.num_processes == 1:
        return TextEvaluation(quality=text_quality(judge_text(model, rows, token_bytes, batch_size=batch_size)))
    mine = share_of_process(len(rows), accelerator)
    *judged, lengths_N = judge_text(model, rows, token_bytes, batch_size=batch_size, indices=mine)
    judged_N4T = torch.from_numpy(np.stack(judged, axis=1)).to(accelerator.device)
    everyone_N4T: Tensor = accelerator.gather(judged_N4T)
    everyone_N: Tensor = accelerator.gather(torch.from_numpy(lengths_N).to(accelerator.device))
    tokens = len(rows) * (len(lengths_N) // len(mine))
    nats, certainty, correct, confidence = everyone_N4T[:tokens].cpu().numpy().swapaxes(0, 1)
    everything = JudgedText(nats, certainty, correct, confidence, everyone_N[:tokens].cpu().numpy())
    return TextEvaluation(quality=text_quality(everything))
