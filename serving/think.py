"""The command `ctm-think`: watch a model think, tick by tick.

inputs -> rows of one request -> events -> the screen, plain lines (no terminal), or JSON lines
a data set -> outcomes -> a file: `scoring.command`
"""

import asyncio
import io
import os
import sys
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from protos import ctm_bundle_pb2 as bundle_pb2
from serving.client import AsyncClient, AsyncThinking, DeadlineExceeded, ThinkError, Unavailable
from serving.errors import BundleRefused, InstallationLacks
from serving.mismatch import quote
from serving.terminal.arguments import Options, flag_of, parse
from serving.terminal.board import Board, Thought
from serving.terminal.drawing import ask_to_draw
from serving.terminal.image_files import CannotWrite, check_writable, write
from serving.terminal.images import Loaded, UnfitInput
from serving.terminal.kinds import Kind, kind_of, shows_positions
from serving.terminal.lines import show_lines
from serving.terminal.live import show_live
from serving.terminal.looking import ATTENTION
from serving.terminal.sheet_lines import show_sheet_lines
from serving.terminal.sheet_view import SheetView
from serving.terminal.writing import Writing, show_json, show_writing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(arguments)
    _print_anything()
    try:
        return asyncio.run(_run(options))
    except (UnfitInput, CannotWrite, BundleRefused, InstallationLacks) as error:
        return _fail(str(error))
    except Unavailable as error:
        return _fail(f"no answer from {options.address}: {error}; is ctm-serve running there?")
    except DeadlineExceeded as error:
        return _fail(f"no answer from {options.address} in time: {error}")
    except ThinkError as error:
        return _fail(str(error) or error.code.name)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our lines has gone; leave nothing for the interpreter to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


async def _run(options: Options) -> int:
    if options.data:
        from serving.scoring.command import (
            score_files,
        )  # with the engine, which takes a while and watching does without

        return await score_files(options)
    async with AsyncClient(options.address) as client:
        manifest = await client.get_model(options.model, options.version)
        _refuse_meaningless(manifest, options)
        match manifest.chain:
            case "text":
                await _write(client, manifest, options)
            case "diffusion":
                await _draw(client, manifest, options)
            case _:
                await _watch(client, manifest, options)
    return 0


def _refuse_meaningless(manifest: bundle_pb2.Manifest, options: Options) -> None:
    """Refuse options that say nothing to a model of this kind, rather than leave them out."""
    of_text, of_drawing = options.of_text(), options.of_drawing()
    match manifest.chain:
        case "text":
            kind, others = "is a model of text", [*options.of_screen(), *map(flag_of, of_drawing.keys() - of_text)]
        case "diffusion":
            kind, others = "is a model that draws", [*options.of_screen(), *map(flag_of, of_text.keys() - of_drawing)]
        case _:
            kind = "is no model of text" if of_text else "is no model that draws"
            others = [flag_of(option) for option in of_text or of_drawing]
    if others:
        raise UnfitInput(f"{manifest.name} {kind}: {min(others)} means nothing to it")


async def _watch(client: AsyncClient, manifest: bundle_pb2.Manifest, options: Options) -> None:
    """Think about each input once."""
    kind = kind_of(manifest)
    board, thinking = ask(client, kind, options)
    async with thinking:
        console = Console()
        if options.json or not _can_draw(console):
            await show_lines(board, thinking, in_json=options.json)
        else:
            await show_live(board, thinking, console, kind.draw, options.pace)


async def _write(client: AsyncClient, manifest: bundle_pb2.Manifest, options: Options) -> None:
    """Let a model of text go on from each input."""
    prompts = [_standard_input() if text == "-" else _argument(text) for text in options.inputs]
    generating = client.generate(
        manifest.name,
        prompts,
        version=manifest.version,
        threshold=options.threshold,
        min_ticks=options.min_ticks,
        max_ticks=options.max_ticks,
        patience=options.patience,
        abstain_below=options.abstain_below,
        timeout=options.timeout,
        leading=options.top if options.json else 0,
        **options.of_text(),
    )
    async with generating:
        if options.json:
            return await show_json(generating)
        console = Console()
        name, max_ticks = f"{manifest.name}/{manifest.version}", options.max_ticks or manifest.ticks
        await show_writing(Writing(console, prompts, model=name, max_ticks=max_ticks), console, generating)


async def _draw(client: AsyncClient, manifest: bundle_pb2.Manifest, options: Options) -> None:
    """Let a model of diffusion draw the classes that are asked for."""
    if options.inputs:
        met = quote(options.inputs[0])
        raise UnfitInput(f"{manifest.name} is a model that draws: it takes --class and no INPUT, got {met}")
    if options.output is not None:
        check_writable(options.output)
    sheet, drawing = ask_to_draw(client, manifest, options)
    async with drawing:
        console = Console()
        if options.json or not _can_draw(console):
            await show_sheet_lines(sheet, drawing, in_json=options.json)
        else:
            await show_live(sheet, drawing, console, SheetView, options.pace)
    if options.output is not None:
        write(options.output, sheet)


def _print_anything() -> None:
    """Have what the terminal's encoding lacks replaced: models, labels and names of files may hold any character."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UnfitInput(
            f"standard input: got byte 0x{error.object[error.start]:02x} at {error.start}, expected UTF-8"
        ) from None


def _argument(text: str) -> str:
    try:
        text.encode()  # bytes of a command line that are no UTF-8 stand in it as surrogates
    except UnicodeEncodeError as error:
        raise UnfitInput(f"{text!a}: got no UTF-8 at {error.start}, expected a text") from None
    return text


def ask(client: AsyncClient, kind: Kind, options: Options) -> tuple[Board, AsyncThinking]:
    """Begin to think about all inputs at once.

    Raises:
        UnfitInput: a file is not what the model takes.
    """
    manifest, images, positions = kind.manifest, _load(options, kind), shows_positions(kind)
    default = manifest.stop.certainty_threshold if manifest.stop.HasField("certainty_threshold") else None
    board = Board(
        model=f"{manifest.name}/{manifest.version}",
        threshold=default if options.threshold is None else options.threshold,
        max_ticks=options.max_ticks or manifest.ticks,
        thoughts=[Thought(image) for image in images],
        words=kind.words,
        positions=positions,
    )
    thinking = client.think(
        manifest.name,
        {kind.spec.name: np.stack([image.values for image in images])},
        version=manifest.version,
        threshold=options.threshold,
        min_ticks=options.min_ticks,
        max_ticks=options.max_ticks,
        patience=options.patience,
        abstain_below=options.abstain_below,
        top_k=1 if positions else options.top,
        details=[ATTENTION] if options.attention else [],
        timeout=options.timeout,
    )
    return board, thinking


def _load(options: Options, kind: Kind) -> list[Loaded]:
    images = [image for source in options.inputs for image in kind.load(source, options.invert)]
    if not images:
        raise UnfitInput("the arrays hold no rows")
    for image in images:
        if image.inverted:
            _note(f"{image.name}: its border is light, so it is inverted; --no-invert keeps it")
    return images


def _can_draw(console: Console) -> bool:
    return sys.stdout.isatty() and not console.is_dumb_terminal and console.encoding.startswith("utf")


def _note(sentence: str) -> None:
    print(f"ctm-think: {sentence}", file=sys.stderr)


def _fail(sentence: str) -> int:
    _note(" ".join(sentence.split()))
    return 1


if __name__ == "__main__":
    sys.exit(main())
