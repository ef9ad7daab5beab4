"""A corpus: a folder of tokens in three splits, with the tokenizer that made them; reading it.

    corpus.json           format version, vocabulary, hashes, what each split holds, sources, command
    tokenizer.json        of the library `tokenizers`
    train-00000.npy ...   tokens, uint16 or uint32, one document after the other, the end token after each
    held_out-00000.npy ...
    test-00000.npy ...

Only `corpus.json` says what belongs to the corpus.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer

from ctm.language.errors import CorpusError
from ctm.language.tokenizer import FILE_NAME, read_tokenizer, token_bytes

FORMAT = 1
DESCRIPTION = "corpus.json"
DTYPES = ("uint16", "uint32")
SPLITS = ("train", "held_out", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitDescription:
    """What one split holds."""

    tokens: int
    """The end token after each document included."""
    documents: int
    bytes: int
    """Of text, in UTF-8."""
    shards: list[int]
    """Tokens in each file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceDescription:
    """A file that a corpus was made from."""

    name: str
    sha256: str
    documents: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusDescription:
    """What corpus.json says."""

    format: int
    vocabulary: int
    end_token: int
    dtype: str
    tokenizer_sha256: str
    splits: dict[str, SplitDescription]
    sources: list[SourceDescription]
    seed: int
    command: str


class Tokens:
    """The tokens of one split: a long sequence over memory-mapped files."""

    def __init__(self, shards: list[NDArray[Any]]) -> None:
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def take(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens at these positions, int64 in the same shape; positions lie in [0, len)."""
        if len(self._shards) == 1:
            return self._shards[0][positions].astype(np.int64)
        taken = np.empty(positions.shape, dtype=np.int64)
        owners = np.searchsorted(self._ends, positions, side="right")
        for owner in np.unique(owners):
            shard, mine = self._shards[owner], owners == owner
            taken[mine] = shard[positions[mine] - (self._ends[owner] - len(shard))]
        return taken


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Tokens to learn from, to watch and to test on, and what they stand for."""

    folder: Path
    description: CorpusDescription
    tokenizer: Tokenizer
    token_bytes: NDArray[np.int64]
    """Bytes of text that each token stands for, [vocabulary]; the end token stands for none."""
    train: Tokens
    held_out: Tokens
    test: Tokens

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.description.vocabulary

    @property
    def end_token(self) -> int:
        """What stands after each document."""
        return self.description.end_token


def open_corpus(folder: Path) -> Corpus:
    """Open a corpus without reading its tokens.

    Raises:
        CorpusError: something is missing, damaged, or does not fit the rest.
    """
    description = _read_description(folder)
    tokenizer = read_tokenizer(folder / FILE_NAME, description.tokenizer_sha256)
    sizes = token_bytes(tokenizer)
    if len(sizes) != description.vocabulary:
        raise CorpusError(
            f"{folder / FILE_NAME} has {len(sizes)} tokens, {DESCRIPTION} says a vocabulary of {description.vocabulary}"
        )
    train, held_out, test = (_open_split(folder, split, description) for split in SPLITS)
    return Corpus(
        folder=folder,
        description=description,
        tokenizer=tokenizer,
        token_bytes=sizes,
        train=train,
        held_out=held_out,
        test=test,
    )


def write_description(folder: Path, description: CorpusDescription) -> None:
    (folder / DESCRIPTION).write_text(json.dumps(asdict(description), indent=2) + "\n", encoding="utf-8")


def shard_path(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.npy"


def _read_description(folder: Path) -> CorpusDescription:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise CorpusError(f"{folder} is no corpus: it lacks {DESCRIPTION}; ctm-ingest makes one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from error
    # Before all else: other versions may have other keys.
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise CorpusError(
            f"{path} has format {version!r}, this version reads format {FORMAT}; ctm-ingest makes it anew"
        )
    try:
        description = TypeAdapter(CorpusDescription).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CorpusError(f"{path}: {where}: {first['msg']}, got {first['input']!r}") from error
    if missing := [split for split in SPLITS if split not in description.splits]:
        raise CorpusError(f"{path} lacks the splits {', '.join(missing)}")
    if description.dtype not in DTYPES:
        raise CorpusError(f"{path}: dtype must be {' or '.join(DTYPES)}, got {description.dtype!r}")
    if not 0 <= description.end_token < description.vocabulary:
        raise CorpusError(f"{path}: end_token must lie in [0, {description.vocabulary}), got {description.end_token}")
    return description


def _open_split(folder: Path, split: str, description: CorpusDescription) -> Tokens:
    expected = description.splits[split]
    if not expected.shards or sum(expected.shards) != expected.tokens:
        raise CorpusError(
            f"{folder / DESCRIPTION}: {split} has {expected.tokens} tokens, its shards {sum(expected.shards)}"
        )
    return Tokens(
        [
            _open_shard(shard_path(folder, split, number), tokens, description.dtype)
            for number, tokens in enumerate(expected.shards)
        ]
    )


def _open_shard(path: Path, tokens: int, dtype: str) -> NDArray[Any]:
    try:
        shard: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from error
    if shard.shape != (tokens,) or shard.dtype != np.dtype(dtype):
        raise CorpusError(f"{path} holds {shard.dtype} {list(shard.shape)}, {DESCRIPTION} says {dtype} {[tokens]}")
    return shard
