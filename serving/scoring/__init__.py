"""Offline scoring: a whole data set through a model, an outcome for each row, whatever thinks and whatever asks.

rows of files -> score -> outcomes -> a file                      (`ctm-think --input FILES --output FILE`)
                   └── ask: a server's session, or `LocalThinker`, an engine in this process
batches of tables -> `BatchScorer` -> score -> columns            (Ray Data and its like)
"""

from serving.local import LocalThinker
from serving.scoring.batches import BatchScorer
from serving.scoring.rows import Row
from serving.scoring.score import Outcome, score

__all__ = ["BatchScorer", "LocalThinker", "Outcome", "Row", "score"]
