"""Random shifts, rotations, sizes and slants of a batch of images, in one resampling."""
# Shapes: B rows, C channels, H rows of pixels, W columns of pixels.

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ctm.tasks.config import AugmentConfig


def augmentation(config: AugmentConfig) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    """What `Task.augment` wants; None when the configuration leaves images as they are."""
    return partial(augment, config) if config.active else None


def augment(config: AugmentConfig, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """A fresh variant of every image; what comes in from outside an image is 0, its background.

    Args:
        generator: the only source of chance, on the CPU whatever the images are on: the same state gives the same
            variants on every device.
    """
    rows, _, height, width = images_BCHW.shape

    def within(limit: float, columns: int = 1) -> Tensor:
        return (2 * torch.rand(rows, columns, generator=generator) - 1) * limit

    angle_B = within(math.radians(config.rotation))[:, 0]
    slant_B = within(math.tan(math.radians(config.shear)))[:, 0]
    size_B = 1 + within(config.scale)[:, 0]
    shift_B2 = within(config.shift, columns=2)

    # affine_grid wants, for each place of the new image, the place of the old one: hence the division by the size.
    cos_B, sin_B = angle_B.cos() / size_B, angle_B.sin() / size_B
    first_B3 = torch.stack([cos_B, slant_B * cos_B - sin_B, shift_B2[:, 0] * 2 / width], dim=1)
    second_B3 = torch.stack([sin_B, slant_B * sin_B + cos_B, shift_B2[:, 1] * 2 / height], dim=1)
    theta_B23 = torch.stack([first_B3, second_B3], dim=1).to(images_BCHW)
    grid_BHW2 = functional.affine_grid(theta_B23, list(images_BCHW.shape), align_corners=False)
    return functional.grid_sample(images_BCHW, grid_BHW2, mode="bilinear", padding_mode="zeros", align_corners=False)
