"""Where patches begin: they are short where the next byte is hard to tell and long where it is easy.

    byte t begins a patch if the one before has max_length bytes, or at least min_length of them and
    H_t > threshold   or   H_t - H_{t-1} > rise

H_t is what `EntropyModel` says of byte t before reading it, so whether t begins a patch hangs on earlier bytes alone.
Patches are cut greedily from the left; the last one of a row ends with the row, however short. After entropy patching
in the Byte Latent Transformer (arXiv 2412.09871, section 2.3). Shapes are static: rows have room for as many patches
as there can be.
"""

# Shapes: B rows, N bytes, P patches there is room for, S = P + 1.

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ctm.diffusion.entropy_model import BYTES, EntropyModelConfig, check_length


@dataclass(frozen=True, kw_only=True, slots=True)
class PatcherConfig:
    """How bytes are cut into patches, and how wide a patch's vector is."""

    length: int
    """[N] Bytes there is room for in a row."""

    width: int = 64
    """[E] Width of a patch's vector."""

    min_length: int = 4
    """Bytes that a patch has at least, but for the last of a row."""

    max_length: int = 128
    """Bytes that a patch has at most."""

    threshold: float = 0.75
    """In nats: a byte with more entropy begins a patch."""

    rise: float = 0.1
    """In nats: a byte with that much more entropy than the one before begins a patch; infinite for never."""

    entropy: EntropyModelConfig = field(default_factory=EntropyModelConfig)

    def __post_init__(self) -> None:
        for name in ("length", "width", "min_length", "max_length"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"patcher.{name} must be a whole number of at least 1, got {value!r}")
        if self.max_length < self.min_length:
            raise ValueError(f"patcher.max_length must be at least min_length {self.min_length}, got {self.max_length}")
        for name in ("threshold", "rise"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
                raise ValueError(f"patcher.{name} must be a number of nats, got {value!r}")

    @property
    def patches(self) -> int:
        """[P] The most patches that a row can have."""
        return math.ceil(self.length / self.min_length)


class Patches(NamedTuple):
    """Which byte is in which patch."""

    which: Tensor
    """[B, N] the patch of each byte, from 0; of bytes beyond the row's own it says nothing."""
    place: Tensor
    """[B, N] where in its patch each byte is, from 0; likewise."""
    real: Tensor
    """[B, N] true where a byte is the row's own."""
    lengths: Tensor
    """[B, P] bytes in each patch; 0 from the row's count on."""
    counts: Tensor
    """[B] patches in each row."""


def cut(entropy_BN: Tensor, config: PatcherConfig, lengths_B: Tensor | None = None) -> Patches:
    """Where patches begin and end. Nothing is learned through it.

    Args:
        entropy_BN: in nats, of each byte before it is read.
        lengths_B: how many bytes each row has, 0..N; None for all N.
    """
    check_length(entropy_BN, config.length)
    rise_BN = torch.diff(entropy_BN, dim=1, prepend=entropy_BN[:, :1])
    hard_BN = (entropy_BN > config.threshold) | (rise_BN > config.rise)
    byte_N = torch.arange(config.length, device=entropy_BN.device)
    full_B = torch.full_like(hard_BN[:, 0], config.length, dtype=torch.long)
    end_B1 = (full_B if lengths_B is None else lengths_B.long())[:, None]

    starts_BS = _follow(_next_start(hard_BN, end_B1, config), config.patches)
    lengths_BP = torch.diff(starts_BS, dim=1)
    # All starts that a row does not need lie at its end, and mark the byte there once.
    marks_BN = torch.zeros_like(hard_BN, dtype=torch.long)
    marks_BN = torch.cat([marks_BN, marks_BN[:, :1]], dim=1).scatter(1, starts_BS, 1)[:, :-1]
    which_BN = (marks_BN.cumsum(1) - 1).clamp(0, config.patches - 1)
    place_BN = (byte_N - starts_BS.gather(1, which_BN)).clamp(max=config.max_length - 1)
    return Patches(which_BN, place_BN, byte_N < end_B1, lengths_BP, (lengths_BP > 0).sum(1))


def _next_start(hard_BN: Tensor, end_B1: Tensor, config: PatcherConfig) -> Tensor:
    """Where the next patch would begin if one began here, for each place and the one after the last, [B, N + 1]."""
    place = torch.arange(config.length + 1, device=hard_BN.device)
    nowhere = torch.full_like(hard_BN[:, :1], config.length, dtype=torch.long)
    first = torch.cat([torch.where(hard_BN, place[:-1], config.length), nowhere], dim=1)
    # The first hard byte from each place on, among twice as many places in each round.
    reach = 1
    while reach < min(config.max_length, config.length):
        first = torch.minimum(first, torch.cat([first[:, reach:], nowhere.expand(-1, reach)], dim=1))
        reach *= 2
    soonest = first.index_select(1, (place + config.min_length).clamp(max=config.length))
    return torch.minimum(torch.minimum(soonest, place + config.max_length), end_B1)


def _follow(jump: Tensor, patches: int) -> Tensor:
    """The places met by jumping from 0, [B, S]: twice as many, and jumps twice as long, in each round."""
    starts_BS, found = jump[:, :1] * 0, 1
    while found < patches + 1:
        starts_BS = torch.cat([starts_BS, jump.gather(1, starts_BS)], dim=1)
        jump, found = jump.gather(1, jump), 2 * found
    return starts_BS[:, : patches + 1]


def fit_threshold(entropy_BN: Tensor, config: PatcherConfig, mean_length: float) -> float:
    """The threshold that comes nearest to patches of so many bytes on average, with all else as in `config`.

    To be asked once the entropy model has learned: what is much for one is little for another.
    """
    low, high = 0.0, math.log(BYTES)
    for _ in range(20):
        middle = (low + high) / 2
        patches = cut(entropy_BN, replace(config, threshold=middle))
        if patches.lengths.sum() < mean_length * patches.counts.sum():
            low = middle
        else:
            high = middle
    return (low + high) / 2
