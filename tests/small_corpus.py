"""A corpus that tests make: a few hundred sentences of a small grammar, learned into 300 tokens."""

import random
from pathlib import Path
from typing import Any

from ctm.language.ingest import Ingestion, ingest

SENTENCES = 400


def grammar(seed: int = 0, sentences: int = SENTENCES) -> str:
    """Sentences, one a line, with characters of one to four bytes."""
    dice = random.Random(seed)
    who, does, what = (
        ["the cat", "une fée", "日本の魚", "a 🐟"],
        ["eats", "sees", "trouvé"],
        ["it", "ein Öl", "the end"],
    )
    lines = (f"{number} {dice.choice(who)} {dice.choice(does)} {dice.choice(what)}." for number in range(sentences))
    return "".join(f"{line}\n" for line in lines)


def write_text(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def small_corpus(folder: Path, text: str | None = None, **options: Any) -> Path:
    """A corpus of documents of about 200 bytes in `folder`, which is made; its text stands beside it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = write_text(folder.parent / f"{folder.name}.txt", grammar() if text is None else text)
    chosen = {"vocabulary": 300, "document_bytes": 200, "held_out": 0.2, "test": 0.2, **options}
    ingest(Ingestion(files=(path,), output=folder, **chosen), command="ctm-ingest ...")
    return folder
