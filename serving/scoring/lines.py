"""Outcomes as the lines of a table.

source  row  prediction  score  certainty  ticks_used  answer_tick  stop_reason  abstained  error  [logits]  [kept ...]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.client import Answer
from serving.mismatch import Mismatch, quote
from serving.scoring.score import Outcome
from serving.terminal.positions import best

OURS = (
    "source",
    "row",
    "prediction",
    "score",
    "certainty",
    "ticks_used",
    "answer_tick",
    "stop_reason",
    "abstained",
    "error",
    "logits",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What stands in a line."""

    positions: bool = False
    """Whether a prediction is a label at each of several positions: a list of them, and of their scores."""
    logits: bool = False
    """Whether the whole prediction is written."""
    kept: Sequence[str] = ()
    """Columns of the data set."""

    def __post_init__(self) -> None:
        if taken := [name for name in self.kept if name in OURS]:
            raise Mismatch("kept columns", quote(taken[0]), "none of the names of what is written")

    def names(self) -> list[str]:
        return [*(name for name in OURS if name != "logits" or self.logits), *dict.fromkeys(self.kept)]

    def line(self, outcome: Outcome) -> dict[str, Any]:
        """One outcome by column; None wherever nothing was said."""
        row = outcome.row
        line = dict.fromkeys(self.names()) | {name: row.kept.get(name) for name in self.kept}
        line |= {"source": _printable(row.source), "row": row.index, "error": _printable(outcome.error) or None}
        return line if outcome.answer is None else line | self._said(outcome.answer)

    def _said(self, answer: Answer) -> dict[str, Any]:
        said: dict[str, Any] = {
            "certainty": round(answer.certainty, 6),
            "ticks_used": answer.ticks_used,
            "answer_tick": answer.answer_tick,
            "stop_reason": answer.stop_reason.name,
            "abstained": answer.abstained,
        }
        leaders = best(answer.top)
        labels, scores = [one.label for one in leaders], [round(one.score, 6) for one in leaders]
        if leaders:  # a row that never ticked has none
            said["prediction"], said["score"] = (labels, scores) if self.positions else (labels[0], scores[0])
        if self.logits and answer.prediction is not None:
            said["logits"] = answer.prediction.tolist()
        return said


def _printable(text: str) -> str:
    """Names of files may hold bytes that are no UTF-8, which stand in them as surrogates; no table takes those."""
    return text.encode(errors="backslashreplace").decode()
