"""Images as rows of bytes, which is what granularities and dynamic patches are made of.

    byte = round(127.5 (x + 1)), x brought to [-1, 1] first        row by row from the top

Straight, not by a companding curve: halves of a byte are told from each other alike, wherever they lie. What noise
puts beyond [-1, 1] is cut off; the patches of the grid still show it. Nothing is learned through it.
"""

# Shapes: N rows, S side, B = S * S bytes.

from torch import Tensor


def image_bytes(image_NSS: Tensor) -> Tensor:
    """[N, B] whole numbers in 0..255, int64."""
    image_NSS = image_NSS.detach().float()
    # What is no number is some byte too: with one that there is not, no row could be looked up.
    image_NSS = image_NSS.masked_fill(image_NSS.isnan(), 0.0)
    return ((image_NSS.clamp(-1, 1) + 1) * 127.5).round().long().flatten(1)
