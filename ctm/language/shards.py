"""Writing the tokens of one split: files of equal length, the last one shorter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctm.language.corpus import SplitDescription, shard_path
from ctm.language.errors import CorpusError

TokenNumber = np.unsignedinteger[Any]
TokenType = np.dtype[TokenNumber]


def dtype_for(vocabulary: int) -> TokenType:
    """The smallest type that holds every token."""
    return np.dtype("uint16" if vocabulary <= 2**16 else "uint32")


class SplitWriter:
    """Takes documents, and writes a file whenever it has tokens enough for one."""

    def __init__(
        self,
        folder: Path,
        split: str,
        shard_tokens: int,
        dtype: TokenType,
        end_token: int,
        token_bytes: NDArray[np.int64],
    ) -> None:
        """Write nothing yet.

        Args:
            shard_tokens: in every file but the last.
            token_bytes: of every token, to see that none of a document's bytes is lost.
        """
        self._folder, self._split, self._shard_tokens = folder, split, shard_tokens
        self._dtype, self._end_token, self._token_bytes = dtype, end_token, token_bytes
        self._waiting: list[NDArray[TokenNumber]] = []
        self._num_waiting = 0
        self._shards: list[int] = []
        self._documents = self._bytes = 0

    def add(self, text: str, tokens: Sequence[int]) -> None:
        """Append a document and the end token.

        Raises:
            CorpusError: the tokens do not stand for as many bytes as the text has: bits per byte would be wrong.
        """
        size, stands_for = len(text.encode()), int(self._token_bytes[tokens].sum())
        if size != stands_for:
            raise CorpusError(
                f"the tokenizer does not keep text as it is: a document of {size} bytes, which begins with "
                f"{text[:40]!r}, became tokens that stand for {stands_for} bytes"
            )
        self._waiting.append(np.array([*tokens, self._end_token], dtype=self._dtype))
        self._num_waiting += len(tokens) + 1
        self._documents += 1
        self._bytes += size
        if self._num_waiting >= self._shard_tokens:
            self._write_full()

    def close(self) -> SplitDescription:
        """Write what is left."""
        if self._num_waiting:
            self._save(np.concatenate(self._waiting))
        return SplitDescription(
            tokens=sum(self._shards), documents=self._documents, bytes=self._bytes, shards=self._shards
        )

    def _write_full(self) -> None:
        tokens = np.concatenate(self._waiting)
        full = len(tokens) // self._shard_tokens * self._shard_tokens
        for first in range(0, full, self._shard_tokens):
            self._save(tokens[first : first + self._shard_tokens])
        self._waiting, self._num_waiting = [tokens[full:]], len(tokens) - full

    def _save(self, tokens: NDArray[TokenNumber]) -> None:
        np.save(shard_path(self._folder, self._split, len(self._shards)), tokens, allow_pickle=False)
        self._shards.append(len(tokens))
