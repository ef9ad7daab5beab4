"""Records what ctm-think shows of a running server's thoughts as an SVG picture, the one in the README."""

import argparse
import asyncio
import io
import re
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from serving.client import AsyncClient
from serving.client.channel import DEFAULT_ADDRESS
from serving.terminal.arguments import Options
from serving.terminal.kinds import kind_of
from serving.think import ask

ROOT = Path(__file__).parents[1]
COMMANDS = [
    ["examples/digits/4-hard-like-9.png"],
    ["examples/digits/7-easy.png", "examples/digits/5-hard-like-3.png"],
]


async def record(address: str, console: Console) -> None:
    """Run each command, and print what stands on the screen at its end."""
    async with AsyncClient(address) as client:
        for images in COMMANDS:
            options = Options(inputs=[str(ROOT / image) for image in images])
            kind = kind_of(await client.get_model(options.model))
            board, thinking = ask(client, kind, options)
            async for event in thinking:
                board.record(event, time.monotonic())
            console.print(Text.assemble(("$ ", "green"), f"ctm-think {' '.join(images)}"))
            console.print(kind.draw(board, running=False))


def main() -> None:
    parser = argparse.ArgumentParser(description="Record ctm-think's screen as an SVG file.")
    parser.add_argument("--address", default=DEFAULT_ADDRESS, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "think.svg", help="default: %(default)s")
    parser.add_argument("--width", type=int, default=80, help="columns; default: %(default)s")
    options = parser.parse_args()
    console = Console(
        record=True,
        width=options.width,
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
        file=io.StringIO(),
    )
    asyncio.run(record(options.address, console))
    svg = console.export_svg(title="ctm-think")
    # Without the fonts that rich would have every reader fetch from elsewhere: any monospaced one will do.
    options.out.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
