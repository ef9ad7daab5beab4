"""Images as rows of square patches, and back."""

from torch import Tensor
from torch.nn import functional as F


def cut(image_NSS: Tensor, patch: int) -> Tensor:
    """[N, S, S] to patches, [N, P, patch * patch], row by row."""
    across = image_NSS.shape[-1] // patch
    return image_NSS.view(-1, across, patch, across, patch).transpose(2, 3).reshape(-1, across**2, patch**2)


def join(patches: Tensor, side: int, patch: int) -> Tensor:
    """The inverse of `cut`."""
    across = side // patch
    return patches.view(-1, across, across, patch, patch).transpose(2, 3).reshape(-1, side, side)


def windows(image_NSS: Tensor, patch: int, margin: int) -> Tensor:
    """[N, S, S] to patches with the pixels around each, [N, P, (patch + 2 margin)^2]; beyond the image they are 0."""
    if margin == 0:
        return cut(image_NSS, patch)
    seen = F.unfold(image_NSS.unsqueeze(1), patch + 2 * margin, padding=margin, stride=patch)
    return seen.transpose(1, 2)
