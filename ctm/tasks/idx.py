"""Reading idx files, the format of MNIST: a magic number, the sizes of the dimensions, then plain bytes.

Of the magic number's four bytes the first two are 0, the third is the type of a value (8 is an unsigned byte, the
only one read here) and the fourth is the number of dimensions. Sizes take 4 bytes each, the largest byte first; among
the values the last dimension runs fastest.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

UNSIGNED_BYTE = 8
GZIP_START = b"\x1f\x8b"


class IdxError(ValueError):
    """A file is not the idx file that it should be."""


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The values of an idx file, packed with gzip or not, as uint8 of the shape that the file states.

    Args:
        dimensions: how many dimensions the file must have: 3 for images, 1 for labels.

    Raises:
        IdxError: the file is no idx file of bytes, has other dimensions, or is shorter or longer than it says.
    """
    content = _unpack(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise IdxError(f"{path} is no idx file of bytes: it begins with {content[:4].hex(' ') or 'nothing'}")
    if content[3] != dimensions:
        raise IdxError(f"{path} holds {content[3]} dimensions, expected {dimensions}")
    begin = 4 + 4 * dimensions
    if len(content) < begin:
        raise IdxError(f"{path} ends within its header")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, begin, 4)]
    if len(content) - begin != math.prod(shape):
        raise IdxError(f"{path} holds {len(content) - begin} values, its header says {' x '.join(map(str, shape))}")
    # A copy, because torch wants memory that it may write to.
    values = np.frombuffer(content, dtype=np.uint8, offset=begin).copy()
    return torch.from_numpy(values).reshape(shape)


def _unpack(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(GZIP_START):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise IdxError(f"{path} is damaged: {error}") from error
