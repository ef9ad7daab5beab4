"""Text: at every position of a window of tokens, which token comes next? Windows are cut from a corpus."""
# Shapes: R rows, L length of a window.

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ctm.language.corpus import Corpus, Tokens, open_corpus
from ctm.language.errors import CorpusError
from ctm.tasks.config import TaskConfig, TextConfig
from ctm.tasks.task import Batch, Task


class WindowRows:
    """Windows of one split: row n begins n strides after the first token.

    What is left at the end of the split and fills no window is left out, so that where the stride is the length no
    token is predicted twice.
    """

    def __init__(self, tokens: Tokens, length: int, stride: int, vocabulary: int, limit: int | None = None) -> None:
        """Cut nothing yet.

        Args:
            limit: how many windows there are at most; they are then spread evenly over the split.
        """
        self._tokens, self._length, self._stride, self._vocabulary = tokens, length, stride, vocabulary
        self._windows = (len(tokens) - 1 - length) // stride + 1
        self._rows = self._windows if limit is None else min(self._windows, limit)

    def __len__(self) -> int:
        return self._rows

    def take(self, indices: Tensor) -> Batch:
        """Inputs and targets, both int64 [R, L]: a target is the token after its input.

        Raises:
            CorpusError: the corpus holds a token that its tokenizer does not know.
        """
        windows_R = indices.numpy().astype(np.int64) * self._windows // self._rows
        positions_RL = (windows_R * self._stride)[:, None] + np.arange(self._length + 1)
        tokens_RL = self._tokens.take(positions_RL)
        if tokens_RL.size and tokens_RL.max() >= self._vocabulary:
            raise CorpusError(f"the corpus holds token {tokens_RL.max()}, its vocabulary is {self._vocabulary}")
        tokens = torch.from_numpy(tokens_RL)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def text_task(config: TaskConfig, data_dir: Path | None) -> Task:
    """Training windows may overlap, held-out and test windows do not.

    Args:
        data_dir: a corpus, as ctm-ingest makes it.

    Raises:
        CorpusError: there is none, or a split is shorter than one window.
    """
    if data_dir is None:
        raise CorpusError("the task text needs --data-dir, a corpus that ctm-ingest made")
    corpus, options = open_corpus(data_dir), config.text
    return Task(
        name="text",
        loss="language",
        input_name="tokens",
        input_shape=(options.length,),
        prediction_shape=(corpus.vocabulary,),
        labels=(),
        train=_rows(corpus, "train", options, options.stride),
        held_out=_rows(corpus, "held_out", options, options.length, options.held_out_rows),
        test=_rows(corpus, "test", options, options.length),
        token_bytes=corpus.token_bytes,
        files={"tokenizer.json": corpus.tokenizer.to_str()},
    )


def _rows(corpus: Corpus, split: str, options: TextConfig, stride: int, limit: int | None = None) -> WindowRows:
    tokens: Tokens = getattr(corpus, split)
    if len(tokens) <= options.length:
        raise CorpusError(
            f"{corpus.folder}: a window of task.text.length = {options.length} needs {options.length + 1} tokens, "
            f"{split} has {len(tokens)}"
        )
    return WindowRows(tokens, options.length, stride, corpus.vocabulary, limit)
