"""From rows of bytes to rows of patches, which are short where the next byte is hard to tell.

    bytes -> EntropyModel -> entropies -> cut -> patches -> PatchEncoder -> one vector a patch

Named and meant as in the section on advanced input processing of "CTM-controlled diffusion", after the Byte Latent
Transformer (arXiv 2412.09871).
"""

# Shapes: B rows, N bytes, P patches there is room for, E width of a patch's vector.

from typing import NamedTuple

from torch import Tensor, nn

from ctm.diffusion.entropy_model import EntropyModel, check_length, entropies
from ctm.diffusion.patch_vectors import PatchEncoder
from ctm.diffusion.patches import PatcherConfig, Patches, cut


class Patched(NamedTuple):
    """Rows of bytes as rows of patches."""

    vectors: Tensor
    """[B, P, E] of each patch; zero where there is none."""
    patches: Patches
    logits: Tensor
    """[B, N, 256] what was expected of each byte: by `next_byte_loss` of it alone the entropy model learns."""


class DynamicEntropyPatcher(nn.Module):
    """Cuts rows of bytes into patches by its own model of the next byte, and makes a vector of each patch."""

    def __init__(self, config: PatcherConfig) -> None:
        super().__init__()
        self.config = config
        self.entropy_model = EntropyModel(config.entropy)
        self.encoder = PatchEncoder(config.width, config.max_length)

    def forward(self, bytes_BN: Tensor, lengths_B: Tensor | None = None) -> Patched:
        """The patches of each row and their vectors.

        Args:
            bytes_BN: whole numbers in 0..255, of any integer type; those beyond a row's length change nothing.
            lengths_B: how many bytes each row has, 0..N; None for all N.
        """
        check_length(bytes_BN, self.config.length)
        logits_BN256 = self.entropy_model(bytes_BN)
        patches = cut(entropies(logits_BN256.detach()), self.config, lengths_B)
        vectors_BPE = self.encoder(bytes_BN, patches)
        return Patched(vectors_BPE, patches, logits_BN256)
