"""Files into a model's input: pictures made to fit, arrays taken as they are."""

import io
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from protos import ctm_bundle_pb2 as bundle_pb2
from serving.mismatch import Mismatch
from serving.request import Array
from serving.tensors import DATATYPES, shape_text

_NPY = b"\x93NUMPY"
_BRIGHT = 0.5  # of a border, in [0, 1]


class UnfitInput(Exception):
    """A file that cannot become an input of the model; the sentence says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """One row for the model."""

    name: str
    values: Array
    """In the input's shape and datatype."""
    inverted: bool = False
    """Whether dark ink on light paper was turned into light ink on dark, because its border is light."""


def the_input(manifest: bundle_pb2.Manifest) -> bundle_pb2.TensorSpec:
    """The one input of the model.

    Raises:
        UnfitInput: it has several.
    """
    if len(manifest.inputs) != 1:
        names = ", ".join(spec.name for spec in manifest.inputs)
        raise UnfitInput(f"{manifest.name} takes {len(manifest.inputs)} inputs ({names}); ctm-think fills just one")
    return manifest.inputs[0]


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether rows of this shape can be made from a picture, and drawn: (1, H, W) grey, (3, H, W) colour, or (H, W)."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def load(source: str, spec: bundle_pb2.TensorSpec, *, invert: bool | None = None, fit: bool = True) -> list[Loaded]:
    """The rows that a file holds: one for a picture, one or more for a `.npy` array.

    Args:
        source: a path, or `-` for the standard input.
        invert: swap light and dark; None does so for a grey model when the picture's border is light, on average more
            than half of white. Models of handwriting see light ink on a dark ground. Arrays are never inverted.
        fit: make a picture of another size fit. False takes it as it is, or made larger a whole number of times, every
            pixel then a square of its own.

    Raises:
        UnfitInput: unreadable, or not what the model takes.
    """
    name = "standard input" if source == "-" else Path(source).name
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise UnfitInput(f"{source}: {error.strerror or error}") from error
    if data.startswith(_NPY) or source.endswith(".npy"):
        return from_array(name, _read_array(name, data), spec)
    return [from_picture(name, data, spec, invert=invert, fit=fit)]


def unit(values: Array, spec: bundle_pb2.TensorSpec) -> NDArray[np.float32]:
    """An input's values as brightness in [0, 1], for drawing."""
    low, high = _range(spec)
    brightness: NDArray[np.float32] = ((values.astype(np.float32) - low) / (high - low)).clip(0.0, 1.0)
    return brightness


def _range(spec: bundle_pb2.TensorSpec) -> tuple[float, float]:
    if spec.HasField("minimum") and spec.HasField("maximum") and spec.minimum < spec.maximum:
        return spec.minimum, spec.maximum
    return (0.0, 255.0) if spec.datatype == "UINT8" else (0.0, 1.0)


def _read_array(name: str, data: bytes) -> Array:
    try:
        values: Array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy lets Python parse the header: it throws whatever that throws, and MemoryError
        raise UnfitInput(f"{name}: not a readable .npy array ({error})") from error
    return values


def from_array(name: str, values: Array, spec: bundle_pb2.TensorSpec) -> list[Loaded]:
    """The rows of an array, [shape] or [rows, shape].

    Raises:
        UnfitInput: not what the model takes.
    """
    shape, dtype = tuple(spec.shape), DATATYPES[spec.datatype]
    if values.shape[-len(shape) :] != shape or values.ndim > len(shape) + 1:
        if (1, *values.shape) != shape:  # a grey picture without its one channel
            wanted = f"{shape_text(shape)}, or [rows, ...] of these"
            raise UnfitInput(str(Mismatch(f"{name}, shape", shape_text(values.shape), wanted)))
        values = values[None]
    if not np.can_cast(values.dtype, dtype, "same_kind"):
        raise UnfitInput(str(Mismatch(f"{name}, dtype", values.dtype, dtype)))
    values = _cast(name, values, dtype)
    if values.ndim == len(shape):
        return [Loaded(name, values)]
    return [Loaded(f"{name}[{row}]", one) for row, one in enumerate(values)]


def _cast(name: str, values: Array, dtype: np.dtype[np.generic]) -> Array:
    with np.errstate(over="ignore"):
        cast: Array = values.astype(dtype)
    lost = np.isfinite(values) & ~np.isfinite(cast) if dtype.kind == "f" else cast != values
    if lost.any():
        raise UnfitInput(str(Mismatch(f"{name}, values", values[lost][0], f"numbers that {dtype} holds")))
    return cast


def from_picture(
    name: str, data: bytes, spec: bundle_pb2.TensorSpec, *, invert: bool | None = None, fit: bool = True
) -> Loaded:
    """The row that an encoded picture makes; see `load`.

    Raises:
        UnfitInput: not a picture, or not what the model takes.
    """
    shape = tuple(spec.shape)
    if not is_picture(shape):
        raise UnfitInput(
            f"{name}: the model takes {spec.name!r}, {spec.datatype} {shape_text(shape)}, which is no picture; "
            f"ctm-think fills [1, H, W] and [3, H, W] from pictures, and any shape from a .npy file"
        )
    grey = len(shape) == 2 or shape[0] == 1
    picture = _open(name, data, "L" if grey else "RGB")
    light_paper = invert is None and grey and _border_brightness(picture) > _BRIGHT
    if invert or light_paper:
        picture = ImageOps.invert(picture)
    fitted = _fit(picture, shape[-2:]) if fit else _as_it_is(name, picture, shape[-2:])
    pixels = np.asarray(fitted, np.float32) / 255.0
    low, high = _range(spec)
    values = low + pixels * (high - low)
    if len(shape) == 3:
        values = values[None] if grey else values.transpose(2, 0, 1)
    return Loaded(name, np.ascontiguousarray(values, DATATYPES[spec.datatype]), inverted=light_paper)


def _open(name: str, data: bytes, mode: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            if picture.mode.startswith("I;16"):  # converting would cut off, not scale
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            if picture.has_transparency_data:  # drawn on nothing: take the paper to be white
                ground = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(ground, picture.convert("RGBA"))
            return picture.convert(mode)
    except UnidentifiedImageError:
        raise UnfitInput(f"{name}: not a picture that can be read, nor a .npy array") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnfitInput(f"{name}: cannot be read as a picture ({error})") from error


def _border_brightness(picture: Image.Image) -> float:
    pixels = np.asarray(picture, np.float32) / 255.0
    return float(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean())


def _fit(picture: Image.Image, size: tuple[int, ...]) -> Image.Image:
    """Of the height and width asked for: the picture as large as fits, black around it."""
    height, width = size
    if picture.size == (width, height):
        return picture
    return ImageOps.pad(picture, (width, height), Image.Resampling.LANCZOS, color=0)


def _as_it_is(name: str, picture: Image.Image, size: tuple[int, ...]) -> Image.Image:
    """Of the height and width asked for: one pixel for each square of a picture that is so many times larger."""
    height, width = size
    times = picture.width // width
    if not times or picture.size != (width * times, height * times):
        met, wanted = (
            f"{picture.width} x {picture.height} pixels",
            f"{width} x {height}, or a whole number of times that",
        )
        raise UnfitInput(str(Mismatch(name, met, wanted)))
    return picture.resize((width, height), Image.Resampling.NEAREST)
