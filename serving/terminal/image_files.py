"""A sheet's images as a file: the last of each row as a PNG, or their way out of the noise as an animated GIF."""

import io
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.request import Array
from serving.terminal.sheet import Sheet, brightness

ENDINGS = (".png", ".gif")
_READABLE = 140  # pixels of an enlarged image's longer side, about
_ACROSS = 10  # images beside each other
_GAP = 8  # pixels between them
_GROUND = 96  # their brightness, and that of images that have not come yet
_FRAME_MILLISECONDS, _LAST_MILLISECONDS = 120, 2000


class CannotWrite(Exception):
    """The file cannot be written; the sentence says why."""


def check_writable(path: Path) -> None:
    """Find out what can be found out before anything is drawn.

    Raises:
        CannotWrite: no file can be there.
    """
    folder = path.parent
    if path.is_dir():
        raise CannotWrite(f"{path}: is a folder")
    if not folder.is_dir():
        raise CannotWrite(f"{path}: there is no folder {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise CannotWrite(f"{path}: may not be written")


def write(path: Path, sheet: Sheet) -> None:
    """Write the images, as the path's ending says.

    Raises:
        CannotWrite: there is no image, or no room.
    """
    if all(row.image is None for row in sheet.rows):
        raise CannotWrite(f"{path}: not written, no image came")
    data = gif(sheet) if path.name.lower().endswith(".gif") else png(sheet)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise CannotWrite(f"{path}: {error.strerror or error}") from error


def png(sheet: Sheet) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(side_by_side([row.image for row in sheet.rows], sheet.size)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def gif(sheet: Sheet) -> bytes:
    """A frame for each link that brought an image; rows at the same link are seen together, whenever they came."""
    most = max(len(row.links) for row in sheet.rows)
    shown = [[row.image_at(links) for row in sheet.rows] for links in range(most + 1)]
    shown.append([row.image for row in sheet.rows])  # of a row that was cut off, more than its last link said
    changed = [images for before, images in pairwise(shown) if not _same(before, images)]
    frames = [Image.fromarray(side_by_side(images, sheet.size)) for images in changed]
    durations = [_FRAME_MILLISECONDS] * (len(frames) - 1) + [_LAST_MILLISECONDS]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return stream.getvalue()


def side_by_side(images: Sequence[Array | None], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Grey pixels of all images, enlarged, ten beside each other; None leaves a place empty.

    Args:
        images: each [H, W] in [-1, 1].
        size: H and W.
    """
    times = max(_READABLE // max(size), 1)
    height, width = (pixels * times for pixels in size)
    down, across = -(-len(images) // _ACROSS), min(len(images), _ACROSS)
    pixels = np.full((down * (height + _GAP) + _GAP, across * (width + _GAP) + _GAP), _GROUND, np.uint8)
    for index, image in enumerate(images):
        if image is None:
            continue
        row, column = divmod(index, _ACROSS)
        top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
        grey = (brightness(image) * 255).round().astype(np.uint8)
        pixels[top : top + height, left : left + width] = grey.repeat(times, axis=0).repeat(times, axis=1)
    return pixels


def _same(before: Sequence[Array | None], images: Sequence[Array | None]) -> bool:
    """Whether no image has changed."""
    return all(
        one is other or (one is not None and other is not None and np.array_equal(one, other))
        for one, other in zip(before, images, strict=True)
    )
