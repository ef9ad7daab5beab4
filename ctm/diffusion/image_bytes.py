"""Images as rows of bytes, which is what granularities and dynamic patches are made of.

    byte = round(127.5 (x + 1)), x brought to [-1, 1] first        row by row from the top

Straight, not by a companding curve: halves of a byte are told from each other alike, wherever they lie. What noise
puts beyond [-1, 1] is cut off; the patches of the grid still show it. Nothing is learned through it.
"""

# Shapes: N rows, S side, B = S * S bytes.

from torch import Tensor


def image_bytes(image_NSS: Tensor) -> Tensor:
    """[N, B] whole numbers in 0..255, int64."""
    return ((image_NSS.detach().float().clamp(-1, 1) + 1) * 127.5).round().long().flatten(1)
