"""Bytes as numbers: not a bit is lost on the way there and back, and what makes no whole number is refused."""

import math
import struct
import sys

import pytest
import torch

from ctm.diffusion.bytes import DTYPES, to_bytes, to_numbers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_bytes_come_back_whatever_they_were_read_as(dtype):
    # All patterns: NaNs with payloads, infinities and subnormal numbers are among them.
    drawn = torch.randint(0, 256, (5, 4096), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers = to_numbers(drawn, dtype)
    assert numbers.dtype == dtype
    assert numbers.shape == (5, 4096 // dtype.itemsize)
    assert torch.equal(to_bytes(numbers), drawn)


@pytest.mark.parametrize(
    ("dtype", "letter", "values"),
    [
        pytest.param(torch.float32, "f", [0.0, -0.0, 1.5, -math.pi, 1e-45, 3e38, math.inf], id="float32"),
        pytest.param(torch.float64, "d", [0.1, -1e300, 5e-324], id="float64"),
        pytest.param(torch.float16, "e", [0.1, -65504.0, 6e-8], id="float16"),
        pytest.param(torch.int16, "h", [0, -1, 32767, -32768], id="int16"),
        pytest.param(torch.int32, "i", [0, -1, 1 << 30], id="int32"),
        pytest.param(torch.int64, "q", [0, -1, 1 << 60], id="int64"),
        pytest.param(torch.uint8, "B", [0, 7, 255], id="uint8"),
        pytest.param(torch.int8, "b", [0, 7, -128], id="int8"),
    ],
)
def test_numbers_are_little_endian(dtype, letter, values):
    packed = torch.tensor([list(struct.pack(f"<{len(values)}{letter}", *values))], dtype=torch.uint8)
    numbers = torch.tensor([values], dtype=dtype)
    assert torch.equal(to_bytes(numbers), packed)
    # Compared as bytes, as 0 and -0 are equal numbers.
    assert torch.equal(to_bytes(to_numbers(packed, dtype)), packed)
    assert torch.equal(to_numbers(packed, dtype), numbers)


def test_where_the_most_significant_byte_comes_first_the_order_is_turned(monkeypatch):
    numbers = torch.tensor([[1, 2]], dtype=torch.int16)
    monkeypatch.setattr(sys, "byteorder", "big")
    # On this machine that makes big-endian bytes of little-endian memory.
    turned = to_bytes(numbers)
    assert turned.tolist() == [[0, 1, 0, 2]]
    assert torch.equal(to_numbers(turned, torch.int16), numbers)


def test_bytes_may_begin_anywhere_and_lie_apart():
    drawn = torch.arange(60, dtype=torch.uint8).reshape(2, 30)
    for piece in (drawn[:, 1:9], drawn[:, 3:19:2], drawn.T[:8].T, drawn[:, :0]):
        assert torch.equal(to_numbers(piece, torch.float32), to_numbers(piece.clone(), torch.float32))
        assert torch.equal(to_bytes(to_numbers(piece, torch.float32)), piece)


def test_neither_way_shares_memory_with_what_it_was_given():
    given = torch.zeros(1, 8, dtype=torch.uint8)
    numbers = to_numbers(given, torch.int64)
    to_bytes(numbers).fill_(1)
    numbers.fill_(2)
    assert not given.any()


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        pytest.param(
            lambda: to_numbers(torch.zeros(2, 7, dtype=torch.uint8), torch.float32),
            r"7 bytes are no whole number of torch.float32, which takes 4",
            id="a size that does not divide",
        ),
        pytest.param(
            lambda: to_numbers(torch.zeros(2, 8), torch.float32),
            "bytes must be uint8, got torch.float32",
            id="no bytes",
        ),
        pytest.param(
            lambda: to_numbers(torch.zeros(2, 8, dtype=torch.uint8), torch.complex64),
            r"one of \['torch.uint8', .*\], got torch.complex64",
            id="read as complex",
        ),
        pytest.param(lambda: to_bytes(torch.zeros(2, 8).bool()), r"one of .*, got torch.bool", id="made of truths"),
    ],
)
def test_what_is_refused(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()
