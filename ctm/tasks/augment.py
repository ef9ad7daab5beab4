"""Random variants of a batch of images: shifts, rotations, sizes and slants in one resampling, mirroring, colours."""
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
        images_BCHW: in [0, 1], as what comes out.
        generator: the only source of chance, on the CPU whatever the images are on: the same state gives the same
            variants on every device.
    """
    if config.moves:
        images_BCHW = _move(config, images_BCHW, generator)
    if config.mirror:
        mirrored_B = torch.rand(len(images_BCHW), generator=generator).to(images_BCHW.device) < 0.5
        images_BCHW = torch.where(mirrored_B[:, None, None, None], images_BCHW.flip(-1), images_BCHW)
    if config.colour:
        images_BCHW = _colour(config.colour, images_BCHW, generator)
    return images_BCHW


def _move(config: AugmentConfig, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
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


def _colour(limit: float, images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Each image against black, against its mean grey, and against its greys, by a factor each."""
    factors_B3 = 1 + limit * (2 * torch.rand(len(images_BCHW), 3, generator=generator) - 1)
    brightness, contrast, saturation = (factor[:, None, None, None] for factor in factors_B3.to(images_BCHW).unbind(1))
    images = images_BCHW * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + contrast * (images - mean)
    grey = images.mean(dim=1, keepdim=True)
    return (grey + saturation * (images - grey)).clamp(0, 1)
