"""The command `ctm-think`: watch a model think about pictures, tick by tick.

files -> rows of one request -> events -> the screen, plain lines (no terminal), or JSON lines
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from protos import ctm_bundle_pb2 as bundle_pb2
from serving.client import AsyncClient, AsyncThinking, ThinkError, Unavailable
from serving.client.channel import DEFAULT_ADDRESS
from serving.terminal.board import Board, Thought
from serving.terminal.images import Loaded, UnfitInput, load, the_input
from serving.terminal.lines import show_lines
from serving.terminal.live import show_live

_MODEL = "mnist"
_PACE = 0.06
_DAY = 86400.0
_EPILOGUE = """\
examples:
  ctm-think examples/digits/7-easy.png
  ctm-think --threshold 0.99 --patience 3 examples/digits/*.png
  ctm-think --json examples/digits/*.png | jq -c 'select(.event == "answer")'

Pictures of any size and kind become grey or RGB, as the model takes them, and
are made to fit. Models of handwriting know light ink on a dark ground: a grey
picture whose border is light (on average above half of white) is inverted,
unless --invert or --no-invert is given. A .npy file holds the model's input
itself, [shape] or [rows, shape], and is taken as it is.

exit status: 0 answered (abstained too), 1 not answered, 2 bad usage,
130 interrupted
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The command line; what is None is the model's to say."""

    images: Sequence[str]
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
    json: bool = False
    pace: float = _PACE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = Options(**vars(_parser().parse_args(arguments)))
    try:
        asyncio.run(_run(options))
    except UnfitInput as error:
        return _fail(str(error))
    except Unavailable as error:
        return _fail(f"no answer from {options.address}: {error}; is ctm-serve running there?")
    except ThinkError as error:
        return _fail(str(error) or error.code.name)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our lines has gone; leave nothing for the interpreter to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


async def _run(options: Options) -> None:
    async with AsyncClient(options.address) as client:
        manifest = await client.get_model(options.model, options.version)
        board, thinking = ask(client, manifest, options)
        async with thinking:
            console = Console()
            if options.json or not _can_draw(console):
                await show_lines(board, thinking, in_json=options.json)
            else:
                await show_live(board, thinking, console, the_input(manifest), options.pace)


def ask(client: AsyncClient, manifest: bundle_pb2.Manifest, options: Options) -> tuple[Board, AsyncThinking]:
    """Begin to think about all images at once.

    Raises:
        UnfitInput: a file is not what the model takes.
    """
    images = _load(options, manifest)
    default = manifest.stop.certainty_threshold if manifest.stop.HasField("certainty_threshold") else None
    board = Board(
        model=f"{manifest.name}/{manifest.version}",
        threshold=default if options.threshold is None else options.threshold,
        max_ticks=options.max_ticks or manifest.ticks,
        thoughts=[Thought(image) for image in images],
    )
    thinking = client.think(
        manifest.name,
        {the_input(manifest).name: np.stack([image.values for image in images])},
        version=manifest.version,
        threshold=options.threshold,
        min_ticks=options.min_ticks,
        max_ticks=options.max_ticks,
        patience=options.patience,
        abstain_below=options.abstain_below,
        top_k=options.top,
        timeout=options.timeout,
    )
    return board, thinking


def _load(options: Options, manifest: bundle_pb2.Manifest) -> list[Loaded]:
    spec = the_input(manifest)
    images = [image for source in options.images for image in load(source, spec, invert=options.invert)]
    if not images:
        raise UnfitInput("the arrays hold no rows")
    for image in images:
        if image.inverted:
            _note(f"{image.name}: its border is light, so it is inverted; --no-invert keeps it")
    return images


def _can_draw(console: Console) -> bool:
    return sys.stdout.isatty() and not console.is_dumb_terminal and console.encoding.startswith("utf")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ctm-think",
        description="Watch a model think about pictures, tick by tick, until it is certain.",
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a picture, a .npy array, or - for standard input")

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

    show = parser.add_argument_group("what to show")
    show.add_argument("--top", type=_whole(1), default=3, metavar="K", help="leading classes; default: %(default)s")
    show.add_argument("--invert", action=argparse.BooleanOptionalAction, help="swap light and dark; see below")
    show.add_argument("--json", action="store_true", help="a line of JSON for each event, for scripts")
    show.add_argument(
        "--pace",
        type=_real(0, _DAY),
        default=_PACE,
        metavar="SECONDS",
        help="on a terminal, draw a tick no faster than this; times shown are the real ones; default: %(default)s",
    )
    return parser


def _whole(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not low <= (value := int(text)) < 2**32:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {low}")
        return value

    return number


def _real(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        if not low <= (value := float(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low:g} to {high:g}")
        return value

    return number


def _note(sentence: str) -> None:
    print(f"ctm-think: {sentence}", file=sys.stderr)


def _fail(sentence: str) -> int:
    _note(" ".join(sentence.split()))
    return 1


if __name__ == "__main__":
    sys.exit(main())
