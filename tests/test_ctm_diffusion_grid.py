"""Patches of the grid, and what surrounds them."""

import pytest
import torch
from small_diffusion import noisy_rows, small_model

from ctm.diffusion.grid import cut, join, windows


def test_patches_go_back_where_they_came_from():
    images = torch.arange(72.0).view(2, 6, 6)
    assert torch.equal(join(cut(images, 2), 6, 2), images)
    assert cut(images, 2)[0, 1].tolist() == [2, 3, 8, 9]


def test_a_window_is_the_patch_and_what_surrounds_it_with_nothing_beyond_the_image():
    images = torch.arange(72.0).view(2, 6, 6)
    seen = windows(images, 2, 1).view(2, 3, 3, 4, 4)
    assert torch.equal(seen[..., 1:3, 1:3], cut(images, 2).view(2, 3, 3, 2, 2))
    assert torch.equal(seen[0, 1, 1], images[0, 1:5, 1:5])
    assert not seen[:, 0, :, 0].any(), "above the image"
    assert not seen[:, :, 2, :, 3].any(), "to the right of it"
    assert torch.equal(windows(images, 2, 0), cut(images, 2))


@pytest.mark.parametrize("margin", [0, 1])
def test_a_patch_hears_of_its_neighbours_pixels_by_its_margin_alone(margin):
    model, (noisy, *_) = small_model(margin=margin), noisy_rows(1)
    touched = noisy.clone()
    touched[0, 2, 2] += 1.0  # the corner of the first of four patches that all others touch
    tokens = [model.denoiser.patches(windows(image, 3, margin)) for image in (noisy, touched)]
    moved = (tokens[0] - tokens[1]).abs().amax(-1)[0]
    assert moved.nonzero().flatten().tolist() == ([0] if margin == 0 else [0, 1, 2, 3])
