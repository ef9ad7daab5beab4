"""The command line of `ctm-think`."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from serving.client.channel import DEFAULT_ADDRESS

_MODEL = "mnist"
_PACE = 0.06
_DAY = 86400.0
_OF_TEXT = ("max_links", "temperature", "top_k", "top_p", "stop", "seed")
_SIGNS = re.compile(r"-[+-]*\+[+-]*|-{3,}")
_Number = TypeVar("_Number", int, float)
_GUARD = "\0"  # which no argument can hold: a program's arguments end with it
_EPILOGUE = """\
examples:
  ctm-think examples/digits/7-easy.png
  ctm-think --threshold 0.99 --patience 3 examples/digits/*.png
  ctm-think --json examples/digits/*.png | jq -c 'select(.event == "answer")'
  ctm-think --model maze --attention examples/mazes/*.png
  ctm-think --model parity +--+-++-++----+-
  ctm-think --model kjv --max-links 60 "In the beginning"

Pictures of any size and kind become grey or RGB, as the model takes them, and
are made to fit. Models of handwriting know light ink on a dark ground: a grey
picture whose border is light (on average above half of white) is inverted,
unless --invert or --no-invert is given. A .npy file holds the model's input
itself, [shape] or [rows, shape], and is taken as it is.

Mazes have black walls, white ways, one red pixel to start from and one green to
reach; their pictures have the model's size, or a whole number of times it.
Signs are typed, as in +--+, one for each position that the model answers at.

Models of text take texts in their place, and write on: each token is a thought,
shaded by the ticks that it took.

exit status: 0 answered (abstained too), 1 not answered, 2 bad usage,
130 interrupted
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The command line; what is None is the model's to say."""

    inputs: Sequence[str]
    model: str = _MODEL
    version: int = 0
    address: str = DEFAULT_ADDRESS
    threshold: float | None = None
    min_ticks: int | None = None
    max_ticks: int | None = None
    patience: int | None = None
    abstain_below: float | None = None
    top: int = 3
    timeout: float | None = None
    invert: bool | None = None
    attention: bool = False
    json: bool = False
    pace: float = _PACE
    max_links: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    stop: Sequence[str] | None = None
    seed: int | None = None

    def of_screen(self) -> list[str]:
        """The flags given that mean something to models of no text alone."""
        given = {"--attention": self.attention, "--invert": self.invert, "--no-invert": self.invert is False}
        return [flag for flag, value in given.items() if value]

    def of_text(self) -> dict[str, Any]:
        """The options given that mean something to models of text alone, by name."""
        named = {name: getattr(self, name) for name in _OF_TEXT}
        return {name: value for name, value in named.items() if value is not None}


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options of a command line; a wrong one ends the process with status 2 and a line that says why."""
    asked = parser()
    options = Options(**vars(asked.parse_args(arguments)))
    if (times := list(options.inputs).count("-")) > 1:
        asked.error(f"argument INPUT: got - {times} times, expected once: standard input is read to its end")
    return options


def parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ctm-think",
        description="Watch a model think, tick by tick, until it is certain.",
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        type=_unguarded,
        help="a picture, a .npy array, a text, signs, or - for standard input",
    )
    _add_where(parser.add_argument_group("where"))
    _add_when(parser.add_argument_group("when to stop (default: as the model's makers chose)"))
    _add_text(parser.add_argument_group("models of text"))
    _add_show(parser.add_argument_group("what to show"))
    return parser


def _add_where(where: argparse._ArgumentGroup) -> None:
    where.add_argument("--model", type=_text, default=_MODEL, metavar="NAME", help="default: %(default)s")
    where.add_argument("--version", type=_whole(0), default=0, metavar="N", help="default: the newest served")
    where.add_argument(
        "--address", type=_address, default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="default: %(default)s"
    )
    where.add_argument(
        "--timeout", type=_real(0.001, _DAY), metavar="SECONDS", help="then the best answer so far; default: none"
    )


def _add_when(when: argparse._ArgumentGroup) -> None:
    when.add_argument("--threshold", type=_real(0, 1), metavar="C", help="stop at this certainty, 0 to 1")
    when.add_argument("--min-ticks", type=_whole(0), metavar="N", help="but not before this tick")
    when.add_argument("--max-ticks", type=_whole(1), metavar="N", help="stop after this tick, certain or not")
    when.add_argument("--patience", type=_whole(1), metavar="N", help="its best class unchanged over so many ticks")
    when.add_argument(
        "--abstain-below", type=_real(0, 1), metavar="C", help="abstain when less certain than this, 0 to 1"
    )


def _add_text(text: argparse._ArgumentGroup) -> None:
    text.add_argument("--max-links", type=_whole(1), metavar="N", help="write so many tokens at most; default: 64")
    text.add_argument("--temperature", type=_real(0, 1000), metavar="T", help="0 the best token always; default: 1")
    text.add_argument("--top-k", type=_whole(0), metavar="K", help="draw from the K best tokens only")
    text.add_argument("--top-p", type=_real(0, 1), metavar="P", help="from those that have this share together")
    text.add_argument(
        "--stop", type=_unescaped, action="append", metavar="TEXT", help="end before it; \\n is a line end"
    )
    text.add_argument("--seed", type=_whole(0, 2**64), metavar="N", help="write the same text again")


def _add_show(show: argparse._ArgumentGroup) -> None:
    show.add_argument("--top", type=_whole(1), default=3, metavar="K", help="leading classes; default: %(default)s")
    show.add_argument("--invert", action=argparse.BooleanOptionalAction, help="swap light and dark; see below")
    show.add_argument("--attention", action="store_true", help="where it looks, too")
    show.add_argument("--json", action="store_true", help="a line of JSON for each event, for scripts")
    show.add_argument(
        "--pace",
        type=_real(0, _DAY),
        default=_PACE,
        metavar="SECONDS",
        help="on a terminal, draw a tick no faster than this; times shown are the real ones; default: %(default)s",
    )


class _Parser(argparse.ArgumentParser):
    """Takes signs such as -++- for an input, though they begin as an option does."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments = sys.argv[1:] if args is None else args
        return super().parse_known_args(
            [_GUARD + one if _SIGNS.fullmatch(one) else one for one in arguments], namespace
        )


def _unguarded(text: str) -> str:
    return text.removeprefix(_GUARD)


def _whole(low: int, end: int = 2**32) -> Callable[[str], int]:
    def number(text: str) -> int:
        if (value := _number(text, int)) is None or not low <= value < end:
            raise argparse.ArgumentTypeError(f"{text!a} is not a whole number from {low} to {end - 1}")
        return value

    return number


def _real(low: float, high: float) -> Callable[[str], float]:
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


def _text(text: str) -> str:
    """Bytes of a command line that are no UTF-8 stand in it as surrogates, which nothing can send."""
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise argparse.ArgumentTypeError(f"{text!a} is not UTF-8")
    return text


def _address(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT, such as {DEFAULT_ADDRESS}")
    return _text(text)


def _unescaped(text: str) -> str:
    return _text(text).replace("\\n", "\n")
