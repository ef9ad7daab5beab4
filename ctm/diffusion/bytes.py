"""Bytes as numbers and back: the same memory under another type, so that no bit is lost.

    float32: sign (1 bit), exponent (8), fraction (23), least significant byte first; others accordingly

Not even a NaN changes: nothing is computed. After the section on data conversion of "CTM-controlled diffusion".
"""

# Shapes: B rows, N bytes, L numbers.

import sys

import torch
from torch import Tensor

DTYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)  # fmt: skip
"""What bytes can be read as."""


def to_numbers(bytes_BN: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes read as little-endian numbers, [B, L] of `dtype`, with L = N / size of one number.

    Args:
        bytes_BN: uint8; any leading dimensions.

    Raises:
        ValueError: for another type than those of `DTYPES`, or a number of bytes that makes no whole number.
    """
    if bytes_BN.dtype != torch.uint8:
        raise ValueError(f"bytes must be uint8, got {bytes_BN.dtype}")
    _check(dtype)
    if bytes_BN.shape[-1] % dtype.itemsize:
        raise ValueError(f"{bytes_BN.shape[-1]} bytes are no whole number of {dtype}, which takes {dtype.itemsize}")
    return _read(_little_endian(bytes_BN, dtype.itemsize), dtype)


def to_bytes(numbers_BL: Tensor) -> Tensor:
    """Numbers as little-endian bytes, uint8 [B, N], with N = L * size of one number; any leading dimensions.

    Raises:
        ValueError: for another type than those of `DTYPES`.
    """
    _check(numbers_BL.dtype)
    return _little_endian(_read(numbers_BL.detach(), torch.uint8), numbers_BL.dtype.itemsize)


def _check(dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"numbers must be of one of {[str(known) for known in DTYPES]}, got {dtype}")


def _read(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The same memory under another type, copied first: a piece of something may begin where no number may."""
    size = x.shape[-1] * x.dtype.itemsize // dtype.itemsize
    return x.flatten().clone().view(dtype).reshape(*x.shape[:-1], size)


def _little_endian(bytes_BN: Tensor, size: int) -> Tensor:
    """From this machine's order of bytes, or back to it."""
    if sys.byteorder == "little" or size == 1:
        return bytes_BN
    return torch.unflatten(bytes_BN, -1, (-1, size)).flip(-1).flatten(-2)
