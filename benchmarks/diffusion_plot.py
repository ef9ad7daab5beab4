"""The pictures of `diffusion`: samples of every class, and how some of them came about."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.diffusion_samples import Setting, draw_samples, labels_of
from ctm.diffusion.images import to_pixels
from ctm.diffusion.model import EnhancedCTMDiffusion

EACH = 8
SHOWN = (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 19)
"""Reverse steps of 20 whose estimates are drawn."""


def plot_samples(model: EnhancedCTMDiffusion, setting: Setting, seed: int, path: Path) -> None:
    """Draw `EACH` samples of each class on the left, and the estimates of one of each on the right."""
    classes = model.diffusion.classes
    samples = draw_samples(model, labels_of(EACH * classes, classes), setting, seed=seed)
    steps = [step for step in SHOWN if step < setting.steps]
    grid = _tiles(torch.unflatten(to_pixels(samples.images), 0, (EACH, classes)).transpose(0, 1))
    strips = _tiles(to_pixels(samples.estimates[steps][:, :classes]).transpose(0, 1))
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    FigureCanvasAgg(figure)  # Without pyplot, which wants to know of screens.
    left, right = figure.subplots(1, 2, width_ratios=[EACH, len(steps)])
    for axes, image, title in (
        (left, grid, f"{EACH} samples of each class"),
        (right, strips, "estimates of the clean image, from noise to sample"),
    ):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _tiles(images: Tensor) -> np.ndarray:
    """[rows, columns, S, S] beside and below one another, a pixel apart."""
    framed = torch.nn.functional.pad(images, (0, 1, 0, 1), value=0.3)
    rows, columns, height, width = framed.shape
    tiled: np.ndarray = framed.transpose(1, 2).reshape(rows * height, columns * width).numpy()
    return tiled
