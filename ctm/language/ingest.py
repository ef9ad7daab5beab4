"""The command `ctm-ingest`: from files of text to a corpus that language models learn from.

The files are read twice: once to learn the tokenizer from the training documents, once to write their tokens.
"""

import hashlib
import os
import shlex
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro
from tokenizers import Tokenizer

from ctm.language.corpus import FORMAT, SPLITS, CorpusDescription, SourceDescription, write_description
from ctm.language.documents import read_documents
from ctm.language.errors import CorpusError, IngestError
from ctm.language.shards import SplitWriter, dtype_for
from ctm.language.tokenizer import (
    END_TOKEN,
    FILE_NAME,
    SMALLEST_VOCABULARY,
    find_tokenizer,
    token_bytes,
    train_tokenizer,
)

PROGRAM = "ctm-ingest"
DESCRIPTION = """Make a corpus for a language model from text files, packed with gzip or not, and Parquet files.

  ctm-ingest book.txt.gz --output data/book --vocabulary 1024     with a tokenizer trained on the text
  ctm-ingest pages-*.parquet --output data/pages --tokenizer gpt2   with GPT-2's own

Documents are shared out among training, held-out and test by a hash of their number; the tokenizer is trained on
training documents only."""
DEFAULT_VOCABULARY = 1024
DOCUMENTS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Ingestion:
    """One call of `ctm-ingest`."""

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Text files in UTF-8, packed with gzip or not, and Parquet files."""
    output: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """The corpus to make; it must not be there yet."""
    vocabulary: int | None = None
    """Tokens of the tokenizer that is trained; 1024 when no tokenizer is given either."""
    tokenizer: str | None = None
    """A tokenizer to use instead: a tokenizer.json, a folder that holds one, or a repository's id, such as gpt2."""
    column: str = "text"
    """Column of a Parquet file; each of its rows is a document."""
    held_out: float = 0.05
    """Share of the documents that is watched while training."""
    test: float = 0.05
    """Share of the documents that is read once, at the end."""
    document_bytes: int = 8192
    """A text file is cut into documents at the first line end after so many bytes."""
    shard_tokens: int = 2**26
    """Tokens in one file of the corpus."""
    seed: int = 0
    """Another seed shares the documents out in another way."""

    def __post_init__(self) -> None:
        if not self.files:
            raise IngestError("no files to read: name at least one text or Parquet file")
        if self.vocabulary is not None and self.tokenizer is not None:
            raise IngestError("either --vocabulary or --tokenizer says which tokens there are, got both")
        if self.vocabulary is not None and self.vocabulary < SMALLEST_VOCABULARY:
            raise IngestError(
                f"--vocabulary must be at least {SMALLEST_VOCABULARY}, the bytes and the end token, "
                f"got {self.vocabulary}"
            )
        for option, share in (("--held-out", self.held_out), ("--test", self.test)):
            if not 0 < share < 1:
                raise IngestError(f"{option} must lie in (0, 1), got {share}")
        if self.held_out + self.test >= 1:
            raise IngestError(f"--held-out and --test must leave a share to train on, got {self.held_out + self.test}")
        for option, count in (("--document-bytes", self.document_bytes), ("--shard-tokens", self.shard_tokens)):
            if count < 1:
                raise IngestError(f"{option} must be at least 1, got {count}")

    def split_of(self, document: int) -> str:
        """Where a document goes: by a hash of its number, so that it does not depend on the others."""
        digest = hashlib.blake2b(f"{self.seed}:{document}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        return "test" if place < self.test else "held_out" if place < self.test + self.held_out else "train"


class Document(NamedTuple):
    """A piece of text, and where it goes."""

    source: int
    """Number of its file."""
    split: str
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the corpus is made, 2 when it cannot be, 130 or 143 when told to stop."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        ingestion = tyro.cli(Ingestion, args=list(arguments), prog=PROGRAM, description=DESCRIPTION)
        with _terminable():
            description = ingest(ingestion, shlex.join([PROGRAM, *arguments]))
    except (CorpusError, IngestError, OSError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; nothing was made", file=sys.stderr)
        return 130
    except _Terminated:
        print(f"{PROGRAM}: terminated; nothing was made", file=sys.stderr)
        return 143
    for line in _summary(ingestion.output, description):
        print(line)
    return 0


def ingest(ingestion: Ingestion, command: str = "") -> CorpusDescription:
    """Make the corpus: its folder is whole or not there.

    Args:
        command: what the user typed, kept in the corpus.

    Raises:
        CorpusError: the files make no corpus. IngestError: the folder is there already.
    """
    output = ingestion.output
    if output.exists():
        raise IngestError(f"{output} is there already; --output names a new folder")
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    aside = output.absolute().parent / f".aside-{output.name}-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        description = _write(ingestion, aside, command)
        aside.rename(output)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return description


def _write(ingestion: Ingestion, folder: Path, command: str) -> CorpusDescription:
    tokenizer = _tokenizer(ingestion)
    tokenizer.save(str(folder / FILE_NAME), pretty=False)
    vocabulary = tokenizer.get_vocab_size()
    sizes, end_token = token_bytes(tokenizer), tokenizer.token_to_id(END_TOKEN)
    assert end_token is not None, "every tokenizer was asked for its end token"
    writers = {
        split: SplitWriter(folder, split, ingestion.shard_tokens, dtype_for(vocabulary), end_token, sizes)
        for split in SPLITS
    }
    # What a text says is text: an end token comes from here alone.
    tokenizer.encode_special_tokens = True
    per_source: Counter[int] = Counter()
    documents = _documents(ingestion)
    while some := list(islice(documents, DOCUMENTS_AT_ONCE)):
        encodings = tokenizer.encode_batch_fast([document.text for document in some], add_special_tokens=False)
        for document, encoding in zip(some, encodings, strict=True):
            writers[document.split].add(document.text, encoding.ids)
            per_source[document.source] += 1
    description = CorpusDescription(
        format=FORMAT,
        vocabulary=vocabulary,
        end_token=end_token,
        dtype=dtype_for(vocabulary).name,
        tokenizer_sha256=_sha256(folder / FILE_NAME),
        splits={split: writer.close() for split, writer in writers.items()},
        sources=[
            SourceDescription(name=path.name, sha256=_sha256(path), documents=per_source[number])
            for number, path in enumerate(ingestion.files)
        ],
        seed=ingestion.seed,
        command=command,
    )
    _check_sources(ingestion.files, description.sources)
    for split, held in description.splits.items():
        if not held.documents:
            raise CorpusError(
                f"none of {sum(per_source.values())} documents fell to {split}; more text, smaller --document-bytes, "
                "a larger share or another --seed may help"
            )
    write_description(folder, description)
    return description


def _check_sources(files: Sequence[Path], sources: Sequence[SourceDescription]) -> None:
    """Raise CorpusError where a file came twice: what is learned from would be tested on too."""
    seen: dict[str, Path] = {}
    for path, source in zip(files, sources, strict=True):
        if (before := seen.setdefault(source.sha256, path)) is not path:
            raise CorpusError(f"{path} holds what {before} holds: its documents would be learned from and tested on")


def _tokenizer(ingestion: Ingestion) -> Tokenizer:
    if ingestion.tokenizer is not None:
        return find_tokenizer(ingestion.tokenizer)
    texts = (document.text for document in _documents(ingestion) if document.split == "train")
    return train_tokenizer(texts, ingestion.vocabulary or DEFAULT_VOCABULARY)


def _documents(ingestion: Ingestion) -> Iterator[Document]:
    """All documents of all files, in order."""
    number = 0
    for source, path in enumerate(ingestion.files):
        for text in read_documents(path, ingestion.column, ingestion.document_bytes):
            yield Document(source, ingestion.split_of(number), text)
            number += 1


def _summary(folder: Path, description: CorpusDescription) -> Iterator[str]:
    yield f"{folder}: a vocabulary of {description.vocabulary:,} tokens, {len(description.sources)} file(s)"
    for split, held in description.splits.items():
        yield (
            f"  {split:<9}{held.documents:>12,} documents {held.tokens:>15,} tokens {held.bytes:>15,} bytes "
            f"{held.bytes / held.tokens:6.2f} bytes a token"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Terminated(BaseException):
    """SIGTERM came. No error, so that nobody who catches errors catches it."""


@contextmanager
def _terminable() -> Iterator[None]:
    """While entered, in the main thread, the first SIGTERM raises, so that what was begun is cleared away."""

    def terminate(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
