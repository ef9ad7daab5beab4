"""The command line of `ctm-think`."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serving.client.channel import DEFAULT_ADDRESS

_MODEL = "mnist"
_PACE = 0.06
_DAY = 86400.0
_OF_TEXT = ("max_links", "temperature", "top_k", "top_p", "stop", "seed")
_SIGNS = re.compile(r"-[+-]*\+[+-]*|-{3,}")
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

    def of_text(self) -> dict[str, Any]:
        """The options given that mean something to models of text alone, by name."""
        named = {name: getattr(self, name) for name in _OF_TEXT}
        return {name: value for name, value in named.items() if value is not None}


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

    where = parser.add_argument_group("where")
    where.add_argument("--model", default=_MODEL, metavar="NAME", help="default: %(default)s")
    where.add_argument("--version", type=_whole(0), default=0, metavar="N", help="default: the newest served")
    where.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="default: %(default)s")
    where.add_argument(
        "--timeout", type=_real(0.001, _DAY), metavar="SECONDS", help="then the best answer so far; default: none"
    )

    when = parser.add_argument_group("when to stop (default: as the model's makers chose)")
    when.add_argument("--threshold", type=_real(0, 1), metavar="C", help="stop at this certainty, 0 to 1")
    when.add_argument("--min-ticks", type=_whole(0), metavar="N", help="but not before this tick")
    when.add_argument("--max-ticks", type=_whole(1), metavar="N", help="stop after this tick, certain or not")
    when.add_argument("--patience", type=_whole(1), metavar="N", help="its best class unchanged over so many ticks")
    when.add_argument(
        "--abstain-below", type=_real(0, 1), metavar="C", help="abstain when less certain than this, 0 to 1"
    )

    text = parser.add_argument_group("models of text")
    text.add_argument("--max-links", type=_whole(1), metavar="N", help="write so many tokens at most; default: 64")
    text.add_argument("--temperature", type=_real(0, 1000), metavar="T", help="0 the best token always; default: 1")
    text.add_argument("--top-k", type=_whole(0), metavar="K", help="draw from the K best tokens only")
    text.add_argument("--top-p", type=_real(0, 1), metavar="P", help="from those that have this share together")
    text.add_argument(
        "--stop", type=_unescaped, action="append", metavar="TEXT", help="end before it; \\n is a line end"
    )
    text.add_argument("--seed", type=_whole(0, 2**64), metavar="N", help="write the same text again")

    show = parser.add_argument_group("what to show")
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
    return parser


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
        if not low <= (value := int(text)) < end:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {low}")
        return value

    return number


def _real(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not low <= (value := float(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low:g} to {high:g}")
        return value

    return number


def _unescaped(text: str) -> str:
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise argparse.ArgumentTypeError(f"{text!a} is not UTF-8")
    return text.replace("\\n", "\n")
