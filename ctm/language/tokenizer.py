"""Byte-level BPE: trained here, read from a file or a folder, or fetched; and the bytes that each token stands for.

Byte-level means that any text becomes tokens and comes back as it was: nothing is unknown, nothing is normalised.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ctm.language.errors import CorpusError

END_TOKEN = "<|endoftext|>"
"""Stands between documents."""
SMALLEST_VOCABULARY = 257
"""The 256 bytes and the end token."""
FILE_NAME = "tokenizer.json"
_ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())
"""256 characters, each of which writes one byte down in the vocabulary."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE learned from texts, the end token first.

    Args:
        vocabulary: tokens, at least 257; where the texts hold no more pairs to merge it becomes smaller.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise CorpusError(
            f"a vocabulary must be at least {SMALLEST_VOCABULARY}, the bytes and the end token, got {vocabulary}"
        )
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_TOKEN],
        initial_alphabet=sorted(_ALPHABET),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def find_tokenizer(source: str) -> Tokenizer:
    """The tokenizer that a user names.

    Args:
        source: a tokenizer.json, a folder that holds one or GPT-2's older vocab.json and merges.txt, or the id of a
            repository to fetch tokenizer.json from, such as `gpt2`.

    Raises:
        CorpusError: there is none, or it is no byte-level BPE with an end token.
    """
    path = Path(source)
    if path.suffix == ".json" and not path.exists():
        raise CorpusError(f"there is no file {source}")
    tokenizer = _read_folder(path) if path.is_dir() else read_tokenizer(path if path.exists() else _fetch(source))
    try:
        token_bytes(tokenizer)
    except CorpusError as error:
        raise CorpusError(f"{source}: {error}") from error
    return tokenizer


def read_tokenizer(path: Path, sha256: str | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json; raises CorpusError unless it is one, and the one of this sha256."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from error
    met = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, met):
        raise CorpusError(f"{path} has the sha256 {met}, expected {sha256}")
    try:
        tokenizer = Tokenizer.from_buffer(content)
    # The library has no kind of error of its own.
    except Exception as error:
        raise CorpusError(f"{path} is no tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """How many bytes of text each token stands for, int64 [vocabulary]; special tokens stand for none.

    Raises:
        CorpusError: the tokens are not those of a byte-level BPE with an end token.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    if END_TOKEN not in vocabulary:
        raise CorpusError(f"the tokenizer has no token {END_TOKEN}, which stands between documents")
    if tokenizer.normalizer is not None:
        raise CorpusError("the tokenizer changes text before it reads it: its normalizer must be null")
    if missing := _ALPHABET - vocabulary.keys():
        raise CorpusError(f"the tokenizer is no byte-level BPE: it has no token for {len(missing)} of the 256 bytes")
    if max(vocabulary.values()) >= len(vocabulary):
        raise CorpusError(f"the tokenizer numbers {len(vocabulary)} tokens up to {max(vocabulary.values())}")
    sizes = np.zeros(len(vocabulary), dtype=np.int64)
    for text, number in vocabulary.items():
        if number not in added:
            sizes[number] = len(text)
        elif not added[number].special:
            sizes[number] = len(text.encode())
    # Some tokenizers have it as a token like any other.
    sizes[vocabulary[END_TOKEN]] = 0
    return sizes


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _read_folder(folder: Path) -> Tokenizer:
    if (folder / FILE_NAME).is_file():
        return read_tokenizer(folder / FILE_NAME)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise CorpusError(f"{folder} lacks {FILE_NAME}, and lacks vocab.json and merges.txt")
    try:
        tokenizer = _byte_level(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:
        raise CorpusError(f"{folder}: vocab.json and merges.txt are no tokenizer: {error}") from error
    tokenizer.add_special_tokens([END_TOKEN])
    return tokenizer


def _fetch(repository: str) -> Path:
    try:
        return Path(hf_hub_download(repository, FILE_NAME))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(
            f"{repository} is neither a file, nor a folder, nor a repository that can be reached: {reason}"
        ) from error
