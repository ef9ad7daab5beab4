"""The command line of `ctm-think`."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.client.channel import DEFAULT_ADDRESS
from serving.terminal.values import TABLE_ENDINGS, address, output_file, real, unescaped, utf8, whole

_MODEL = "mnist"
_PACE = 0.06
_DAY = 86400.0
_OF_TEXT = ("max_links", "temperature", "top_k", "top_p", "stop", "seed")
_OF_DRAWING = ("classes", "rows", "steps", "eta", "stride", "seed", "images_every", "output")
_OF_SCORING = ("store", "column", "keep", "logits", "in_flight")
_FLAGS = {"classes": "--class", "data": "--input"}  # of options that are not called by their names
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
  ctm-think --model digits-diffusion --class 7 --rows 4 --output sevens.gif
  ctm-think --input examples/digits --output scores.jsonl

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

Models that draw take no input but classes, and make pictures out of noise: each
reverse step of each picture is a thought.

With --input, a whole data set is scored, and each row's outcome written: asked
of the server, or with --store of the model itself, without one. Data sets are
pictures, folders of them, .npy and .npz arrays, .jsonl and .parquet tables; a
column holds numbers, encoded pictures or paths. A row that cannot be scored
says why under "error", and stops no other.

exit status: 0 answered (abstained too), 1 not or not wholly answered, 2 bad
usage, 130 interrupted
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
    classes: Sequence[str] | None = None
    rows: int | None = None
    steps: int | None = None
    eta: float | None = None
    stride: int | None = None
    images_every: int | None = None
    output: Path | None = None
    data: Sequence[str] = ()
    store: Path | None = None
    column: str | None = None
    keep: Sequence[str] = ()
    logits: bool = False
    in_flight: int | None = None

    def of_screen(self) -> list[str]:
        """The flags given that mean something to models without a chain alone."""
        given = {"--attention": self.attention, "--invert": self.invert, "--no-invert": self.invert is False}
        return [flag for flag, value in given.items() if value]

    def of_text(self) -> dict[str, Any]:
        """The options given that mean something to models of text, by name."""
        return self._given(_OF_TEXT)

    def of_drawing(self) -> dict[str, Any]:
        """The options given that mean something to models that draw, by name."""
        return self._given(_OF_DRAWING)

    def of_scoring(self) -> dict[str, Any]:
        """The options given that mean something to a data set alone, by name."""
        return {name: value for name, value in self._given(_OF_SCORING).items() if value}

    def _given(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options of a command line; a wrong one ends the process with status 2 and a line that says why."""
    asked = parser()
    options = Options(**vars(asked.parse_args(arguments)))
    if (times := list(options.inputs).count("-")) > 1:
        asked.error(f"argument INPUT: got - {times} times, expected once: standard input is read to its end")
    if not options.inputs and not options.classes and not options.data:
        asked.error("the following arguments are required: INPUT, --class of a model that draws, or --input")
    if wrong := _misfit(options):
        asked.error(wrong)
    return options


def _misfit(options: Options) -> str:
    """What goes with a data set and is there without one, or the other way round; empty when all fits."""
    written = options.output is not None and options.output.name.lower().endswith(TABLE_ENDINGS)
    if not options.data:
        if others := options.of_scoring():
            return f"argument {flag_of(min(others))}: goes with --input"
        return f"argument --output: a table goes with --input, got {options.output}" if written else ""
    if not written:
        return f"argument --input: needs --output FILE, ending in one of {', '.join(TABLE_ENDINGS)}"
    if options.inputs:
        return f"argument INPUT: got {options.inputs[0]!a} beside --input, expected the one or the other"
    meaningless = {*options.of_text(), *options.of_drawing()} - {"output"}
    meaningless |= {name for name in ("attention", "json") if getattr(options, name)}
    return f"argument {flag_of(min(meaningless))}: means nothing with --input" if meaningless else ""


def flag_of(option: str) -> str:
    """How an option is written on the command line."""
    return _FLAGS.get(option, f"--{option.replace('_', '-')}")


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
        nargs="*",
        type=_unguarded,
        help="a picture, a .npy array, a text, signs, or - for standard input",
    )
    _add_where(parser.add_argument_group("where"))
    _add_when(parser.add_argument_group("when to stop (default: as the model's makers chose)"))
    _add_text(parser.add_argument_group("models of text"))
    _add_drawing(parser.add_argument_group("models that draw"))
    _add_scoring(parser.add_argument_group("data sets"))
    _add_show(parser.add_argument_group("what to show"))
    return parser


def _add_where(where: argparse._ArgumentGroup) -> None:
    where.add_argument("--model", type=utf8, default=_MODEL, metavar="NAME", help="default: %(default)s")
    where.add_argument("--version", type=whole(0), default=0, metavar="N", help="default: the newest served")
    where.add_argument(
        "--address", type=address, default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="default: %(default)s"
    )
    where.add_argument(
        "--timeout", type=real(0.001, _DAY), metavar="SECONDS", help="then the best answer so far; default: none"
    )


def _add_when(when: argparse._ArgumentGroup) -> None:
    when.add_argument(
        "--threshold", "--certainty-threshold", type=real(0, 1), metavar="C", help="stop at this certainty, 0 to 1"
    )
    when.add_argument("--min-ticks", type=whole(0), metavar="N", help="but not before this tick")
    when.add_argument("--max-ticks", type=whole(1), metavar="N", help="stop after this tick, certain or not")
    when.add_argument("--patience", type=whole(1), metavar="N", help="its best class unchanged over so many ticks")
    when.add_argument(
        "--abstain-below", type=real(0, 1), metavar="C", help="abstain when less certain than this, 0 to 1"
    )


def _add_text(text: argparse._ArgumentGroup) -> None:
    text.add_argument("--max-links", type=whole(1), metavar="N", help="write so many tokens at most; default: 64")
    text.add_argument("--temperature", type=real(0, 1000), metavar="T", help="0 the best token always; default: 1")
    text.add_argument("--top-k", type=whole(0), metavar="K", help="draw from the K best tokens only")
    text.add_argument("--top-p", type=real(0, 1), metavar="P", help="from those that have this share together")
    text.add_argument(
        "--stop", type=unescaped, action="append", metavar="TEXT", help="end before it; \\n is a line end"
    )
    text.add_argument("--seed", type=whole(0, 2**64), metavar="N", help="write, or draw, the same again")


def _add_drawing(drawing: argparse._ArgumentGroup) -> None:
    drawing.add_argument(
        "--class",
        dest="classes",
        type=utf8,
        action="append",
        metavar="NAME",
        help="draw this class, by name or number; of several, each row the next",
    )
    drawing.add_argument("--rows", type=whole(1, 2**16), metavar="N", help="pictures; default: one of each --class")
    drawing.add_argument("--steps", type=whole(1), metavar="N", help="reverse steps from noise to picture")
    drawing.add_argument("--eta", type=real(0, 1), metavar="E", help="fresh noise at each step: 0 none, 1 all")
    drawing.add_argument("--stride", type=whole(1), metavar="N", help="steps at once when certain; default: 1")
    drawing.add_argument(
        "--images-every", type=whole(0), metavar="K", help="see each K-th step's picture; 0: the last; default: 1"
    )
    drawing.add_argument(
        "--output",
        type=output_file,
        metavar="FILE",
        help="write the pictures as .png, or how they came out of the noise as .gif; a data set's outcomes as"
        " .jsonl, .csv or .parquet",
    )


def _add_scoring(scoring: argparse._ArgumentGroup) -> None:
    scoring.add_argument(
        "--input", dest="data", nargs="+", default=(), metavar="FILE", help="score what these files and folders hold"
    )
    scoring.add_argument("--store", type=Path, metavar="FOLDER", help="think here, with a model of this store")
    scoring.add_argument(
        "--column", type=utf8, metavar="NAME", help="which holds the input; default: as the model calls it, or the only"
    )
    scoring.add_argument(
        "--keep", type=utf8, action="append", default=[], metavar="NAME", help="write this column beside the outcome"
    )
    scoring.add_argument("--logits", action="store_true", help="write whole predictions")
    scoring.add_argument(
        "--in-flight", type=whole(1, 2**16), metavar="N", help="rows that are thought about at once; default: 256"
    )


def _add_show(show: argparse._ArgumentGroup) -> None:
    show.add_argument("--top", type=whole(1), default=3, metavar="K", help="leading classes; default: %(default)s")
    show.add_argument("--invert", action=argparse.BooleanOptionalAction, help="swap light and dark; see below")
    show.add_argument("--attention", action="store_true", help="where it looks, too")
    show.add_argument("--json", action="store_true", help="a line of JSON for each event, for scripts")
    show.add_argument(
        "--pace",
        type=real(0, _DAY),
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
