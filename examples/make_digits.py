"""Writes real handwritten digits, from the 10,000 of MNIST's test set, as PNG files into `digits/` beside it."""

import argparse
from pathlib import Path

from PIL import Image

from ctm.tasks.idx import read_idx

# By file name: the place in the test set, from 0. The hard ones are what people, too, would look at twice.
DIGITS = {
    "0-easy": 10,
    "1-easy": 5,
    "2-easy": 82,
    "3-easy": 32,
    "4-easy": 42,
    "5-easy": 102,
    "6-easy": 50,
    "7-easy": 17,
    "8-easy": 146,
    "9-easy": 58,
    "0-hard-like-6": 1621,
    "1-hard-like-2": 2182,
    "2-hard-like-7": 583,
    "3-hard-like-7": 1681,
    "4-hard-like-9": 740,
    "5-hard-like-3": 2597,
    "6-hard-like-1": 2654,
    "7-hard-like-1": 3225,
    "8-hard-like-9": 947,
    "9-hard-like-4": 1232,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write digits of MNIST's test set as PNG files.")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the two t10k idx files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "digits", help="default: %(default)s")
    parser.add_argument("--indices", type=int, nargs="+", metavar="I", help="these instead of the built-in list")
    options = parser.parse_args()

    images = read_idx(options.data_dir / "t10k-images-idx3-ubyte.gz", 3).numpy()
    labels = read_idx(options.data_dir / "t10k-labels-idx1-ubyte.gz", 1).numpy()
    chosen = DIGITS
    if options.indices:
        chosen = {f"{labels[index]}-number-{index}": index for index in options.indices}
    options.out.mkdir(parents=True, exist_ok=True)
    for name, index in chosen.items():
        assert name.startswith(str(labels[index])), f"test digit {index} is a {labels[index]}, not what {name} says"
        Image.fromarray(images[index]).save(options.out / f"{name}.png", optimize=True)
    print(f"{len(chosen)} digits in {options.out}")


if __name__ == "__main__":
    main()
