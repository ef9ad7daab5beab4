"""What the words of a command line may stand for; anything else is named, with what is allowed."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from serving.client.channel import DEFAULT_ADDRESS
from serving.terminal.image_files import ENDINGS

TABLE_ENDINGS = (".jsonl", ".csv", ".parquet")

_Number = TypeVar("_Number", int, float)


def whole(low: int, end: int = 2**32) -> Callable[[str], int]:
    def number(text: str) -> int:
        if (value := _number(text, int)) is None or not low <= value < end:
            raise argparse.ArgumentTypeError(f"{text!a} is not a whole number from {low} to {end - 1}")
        return value

    return number


def real(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        if (value := _number(text, float)) is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!a} is not a number from {low:g} to {high:g}")
        return value

    return number


def _number(text: str, kind: Callable[[str], _Number]) -> _Number | None:
    try:
        return kind(text)
    except ValueError:
        return None


def utf8(text: str) -> str:
    """Bytes of a command line that are no UTF-8 stand in it as surrogates, which nothing can send."""
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise argparse.ArgumentTypeError(f"{text!a} is not UTF-8")
    return text


def address(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT, such as {DEFAULT_ADDRESS}")
    return utf8(text)


def unescaped(text: str) -> str:
    return utf8(text).replace("\\n", "\n")


def output_file(text: str) -> Path:
    """Any name that a file can have, if its ending says what kind it is."""
    if not text.lower().endswith((*ENDINGS, *TABLE_ENDINGS)):
        raise argparse.ArgumentTypeError(f"{text!a} ends in none of {', '.join((*ENDINGS, *TABLE_ENDINGS))}")
    return Path(text)
