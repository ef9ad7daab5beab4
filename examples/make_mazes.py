"""Writes mazes of the task's test rows, which no model learns from, as PNG files into `mazes/` beside it."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from ctm.tasks.config import MazeConfig
from ctm.tasks.maze import COLOURS, WAIT, draw_maze

# By the number of the test row. The name says how many moves the route has.
ROWS = (17, 5, 2, 1, 19, 0, 20, 4)
ENLARGED = 16


def main() -> None:
    parser = argparse.ArgumentParser(description="Write mazes of the task's test rows as PNG files.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "mazes", help="default: %(default)s")
    parser.add_argument("--rows", type=int, nargs="+", metavar="N", default=ROWS, help="default: %(default)s")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    for row in options.rows:
        places, moves = draw_maze(MazeConfig(), "test", row)
        pixels = (np.array(COLOURS)[places] * 255).astype(np.uint8)
        enlarged = pixels.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
        name = f"{int((moves != WAIT).sum()):02d}-moves-row-{row}.png"
        Image.fromarray(enlarged).save(options.out / name, optimize=True)
    print(f"{len(options.rows)} mazes in {options.out}")


if __name__ == "__main__":
    main()
