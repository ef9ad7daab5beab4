"""Patches as vectors of one size, and the way back to their bytes.

    patch = W [mean over its bytes of GELU(W' (byte + place))] + length        byte = MLP(patch + place)

`byte`, `place` (in the patch) and `length` are embeddings. A mean of single bytes that know their places tells apart
what an order-blind mean would not, and costs as much as there are bytes, not as much as the longest patch has room for.
The local encoder and decoder of the Byte Latent Transformer (arXiv 2412.09871, section 3), without attention.
"""

# Shapes: B rows, N bytes, P patches there is room for, E width of a patch's vector.

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm.diffusion.entropy_model import BYTES
from ctm.diffusion.patches import Patches


class PatchEncoder(nn.Module):
    """Makes one vector of the bytes of each patch."""

    def __init__(self, width: int, max_length: int) -> None:
        super().__init__()
        self.byte = nn.Embedding(BYTES, width)
        self.place = nn.Embedding(max_length, width)
        self.length = nn.Embedding(max_length + 1, width)
        self.mix = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, bytes_BN: Tensor, patches: Patches) -> Tensor:
        """[B, P, E], zero where there is no patch."""
        known_BNE = F.gelu(self.mix(self.byte(bytes_BN.long()) + self.place(patches.place)))
        # Summed in float32 whatever it was made in: a patch may have more bytes than bfloat16 can count.
        known_BNE = torch.where(patches.real[..., None], known_BNE.float(), 0.0)
        length_BPE = self.length(patches.lengths)
        which_BNE = patches.which[..., None].expand_as(known_BNE)
        sums_BPE = torch.zeros_like(length_BPE).scatter_add(1, which_BNE, known_BNE)
        vectors_BPE: Tensor = self.out(sums_BPE / patches.lengths.clamp(min=1)[..., None]) + length_BPE
        return vectors_BPE * (patches.lengths > 0)[..., None]


class PatchDecoder(nn.Module):
    """Says something of each byte from the vector of its patch and its place there."""

    def __init__(self, width: int, outputs: int, max_length: int) -> None:
        """`outputs` are numbers a byte, e.g. 256 logits."""
        super().__init__()
        self.place = nn.Embedding(max_length, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, outputs))

    def forward(self, vectors_BPE: Tensor, patches: Patches) -> Tensor:
        """[B, N, outputs], zero for bytes that are not the row's own."""
        said: Tensor = self.mlp(spread(vectors_BPE, patches.which) + self.place(patches.place))
        return said * patches.real[..., None]


def spread(vectors_BPE: Tensor, which_BN: Tensor) -> Tensor:
    """To each byte the vector of its patch, [B, N, E]."""
    return vectors_BPE.gather(1, which_BN[..., None].expand(-1, -1, vectors_BPE.shape[-1]))
