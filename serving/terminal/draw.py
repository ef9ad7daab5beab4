"""Numbers and pictures as coloured characters."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

RGB = tuple[int, int, int]
"""Red, green and blue, each from 0 to 255."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"
_SHADES = " ░▒▓█"

# A class keeps its colour from tick to tick, so that the eye can follow it. Told apart on light and dark ground.
_CLASS_COLOURS = (
    "#4e9de0",
    "#f2994a",
    "#45b56b",
    "#e05a5a",
    "#a97bd6",
    "#b0805f",
    "#e07bb5",
    "#8c96a0",
    "#b8b83e",
    "#3fb8c4",
)


def class_style(index: int) -> Style:
    return Style(color=_CLASS_COLOURS[index % len(_CLASS_COLOURS)])


def class_colour(index: int) -> RGB:
    colour = class_style(index).color
    assert colour is not None, "every class has a colour"
    red, green, blue = colour.get_truecolor()
    return red, green, blue


def certainty_style(certainty: float) -> Style:
    """From red for 0 over yellow to green for 1."""
    stops = np.array([[214, 69, 65], [222, 170, 50], [60, 179, 90]], float)
    place = min(max(certainty, 0.0), 1.0) * 2
    lower = min(int(place), 1)
    red, green, blue = stops[lower] + (stops[lower + 1] - stops[lower]) * (place - lower)
    return Style(color=Color.from_rgb(red, green, blue))


def blend(first: RGB, second: RGB, share: float) -> RGB:
    """The colour that is `share` of the way from the first to the second; the ends for shares outside [0, 1]."""
    share = min(max(share, 0.0), 1.0)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def rgb(colour: RGB) -> Color:
    return Color.from_rgb(*colour)


def bar(value: float, width: int, style: Style, *, mark: float | None = None) -> Text:
    """`value` in [0, 1] as a bar in a field of `width` columns; with a line at `mark` where it falls short of it."""
    eighths = round(min(max(value, 0.0), 1.0) * width * 8)
    if value > 0 and width:
        eighths = max(eighths, 1)
    full, rest = divmod(eighths, 8)
    characters = "█" * full + (_EIGHTHS[rest] if rest else "")
    text = Text(characters.ljust(width), style)
    if mark is not None and len(characters) <= (place := min(int(mark * width), width - 1)):
        text = text[:place] + Text("┊", "dim") + text[place + 1 :]
    return text


def sparkline(certainties: Sequence[float]) -> Text:
    """One character a tick."""
    return Text.assemble(*((column(certainty), certainty_style(certainty)) for certainty in certainties))


def column(value: float) -> str:
    """`value` in [0, 1] as a character that is the higher the more it is."""
    return _LEVELS[min(int(value * len(_LEVELS)), len(_LEVELS) - 1)]


def picture(brightness: NDArray[np.float32], columns: int, *, colour: bool) -> Text:
    """An image of (H, W), (1, H, W) or (3, H, W) in [0, 1], at most `columns` wide and as many pixels high.

    A character is one pixel wide and two high: an upper half block in two colours, or without colours a shade.
    """
    pixels = _shrunk(brightness, columns)
    lines = []
    for upper, lower in zip(pixels[0::2].tolist(), pixels[1::2].tolist(), strict=True):
        cells = groupby(zip(upper, lower, strict=True))  # long runs of ground become one piece
        lines.append(Text.assemble(*(_cell(*cell, len(list(run)), colour=colour) for cell, run in cells)))
    return Text("\n", no_wrap=True).join(lines)


def _cell(upper: Sequence[int], lower: Sequence[int], times: int, *, colour: bool) -> tuple[str, Style]:
    """Two pixels, one above the other, each red, green and blue."""
    if not colour:
        shade = (sum(upper) + sum(lower)) / (6 * 255)
        return _SHADES[round(shade * (len(_SHADES) - 1))] * times, Style.null()
    ground = Color.from_rgb(*lower)
    if upper == lower:
        return " " * times, Style(bgcolor=ground)
    return "▀" * times, Style(color=Color.from_rgb(*upper), bgcolor=ground)


def _shrunk(brightness: NDArray[np.float32], columns: int) -> NDArray[np.uint8]:
    """Pixels [h, w, 3], h even."""
    planes = brightness[None] if brightness.ndim == 2 else brightness
    pixels = np.broadcast_to((planes * 255).round().astype(np.uint8), (3, *planes.shape[1:])).transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = min(1.0, columns / max(image.size))
    width, height = (max(round(side * scale), 1) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BOX)
    shrunk = np.asarray(image)
    return np.pad(shrunk, ((0, height % 2), (0, 0), (0, 0)))
