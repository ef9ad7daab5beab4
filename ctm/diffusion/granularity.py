"""Bytes seen at four granularities at once: bits, bytes, words and blocks.

    bit    sum over the 8 bits of a byte of their own vectors      knows of each bit whether it is set, and no more
    byte   one vector of each of 256 values                        knows which bits are set together
    word   GELU of a linear map of its bytes in their order        knows which byte stands where in a word
    block  GELU of a linear map of its words in their order        knows which word stands where in a block

    features of a token = sum over levels of softmax(a)_level * LayerNorm(level), brought to the tokens' length

A level finer than a token is averaged over it, which forgets the order; a coarser one is repeated. So what makes a
level worth having is what a coarser token cannot know from the finer levels. After the section on multi-granularity
processing of "CTM-controlled diffusion".
"""

# Shapes: B rows, N bytes, L tokens, E width, W bytes of a word, K words of a block, G levels.

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.diffusion.entropy_model import BYTES, check_length


@dataclass(frozen=True, kw_only=True, slots=True)
class GranularityConfig:
    """What words, blocks and tokens are, and how wide the features of a token."""

    length: int
    """[N] Bytes of a row."""

    width: int = 64
    """[E] Width of the features."""

    word: int = 4
    """[W] Bytes of a word."""

    block: int = 16
    """Bytes of a block, whole words."""

    token: int = 4
    """Bytes of a token, for which there is one vector of features: 1, `word` or `block`."""

    def __post_init__(self) -> None:
        for name in ("length", "width", "word", "block", "token"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"granularity.{name} must be a whole number of at least 1, got {value!r}")
        if self.block % self.word:
            raise ValueError(f"granularity.block must be whole words of {self.word} bytes, got {self.block}")
        if self.length % self.block:
            raise ValueError(f"granularity.length must be whole blocks of {self.block} bytes, got {self.length}")
        if self.token not in (1, self.word, self.block):
            raise ValueError(f"granularity.token must be 1, word {self.word} or block {self.block}, got {self.token}")

    @property
    def tokens(self) -> int:
        """[L] Tokens of a row."""
        return self.length // self.token


class Levels(NamedTuple):
    """What each level sees, at its own length."""

    bit: Tensor
    """[B, N, E]"""
    byte: Tensor
    """[B, N, E]"""
    word: Tensor
    """[B, N / W, E]"""
    block: Tensor
    """[B, N / (W K), E]"""


class Granularity(nn.Module):
    """Makes features of rows of bytes, one vector a token."""

    bits_of: Tensor

    def __init__(self, config: GranularityConfig) -> None:
        super().__init__()
        self.config = config
        width, words = config.width, config.block // config.word
        self.register_buffer("bits_of", _bits_of_bytes(), persistent=False)
        self.bit = nn.Linear(8, width)
        self.byte = nn.Embedding(BYTES, width)
        self.word = nn.Linear(config.word * width, width)
        self.block = nn.Linear(words * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in Levels._fields)
        self.mixture = nn.Parameter(torch.zeros(len(Levels._fields)))
        """[G] before the softmax: all levels weigh the same at first."""

    def levels(self, bytes_BN: Tensor) -> Levels:
        """What each level sees of the bytes, whole numbers in 0..255 of any integer type."""
        check_length(bytes_BN, self.config.length)
        bytes_BN = bytes_BN.long()
        byte_BNE = self.byte(bytes_BN)
        words = torch.unflatten(byte_BNE, 1, (-1, self.config.word)).flatten(2)
        word_BLE = F.gelu(self.word(words))
        blocks = torch.unflatten(word_BLE, 1, (-1, self.config.block // self.config.word)).flatten(2)
        return Levels(self.bit(F.embedding(bytes_BN, self.bits_of)), byte_BNE, word_BLE, F.gelu(self.block(blocks)))

    def weights(self) -> Tensor:
        """How much each level counts, [G]; they sum to 1."""
        return self.mixture.softmax(0)

    def forward(self, bytes_BN: Tensor) -> Tensor:
        """Features of each token, [B, L, E]."""
        sizes = (1, 1, self.config.word, self.config.block)
        seen = zip(self.levels(bytes_BN), self.norms, sizes, strict=True)
        resized = [resize(norm(level), size, self.config.token) for level, norm, size in seen]
        return (torch.stack(resized, dim=-1) * self.weights()).sum(-1)


def resize(level_BLE: Tensor, size: int, token: int) -> Tensor:
    """A level of units of `size` bytes as tokens of `token` bytes: averaged where units are finer, else repeated."""
    if size < token:
        return torch.unflatten(level_BLE, 1, (-1, token // size)).mean(2)
    return level_BLE.repeat_interleave(size // token, dim=1) if size > token else level_BLE


def _bits_of_bytes() -> Tensor:
    """1 where a bit of a byte is set and -1 where not, the lowest first, [256, 8]."""
    return 2.0 * (torch.arange(BYTES)[:, None] >> torch.arange(8) & 1) - 1.0
