"""The Fréchet distance between two sets of features, each taken for a Gaussian (arXiv 1706.08500).

    d = |μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1^½ Σ2 Σ1^½)^½)

As is usual, d is the square. The trace of the last root is the sum of the singular values of Σ1^½ Σ2^½, which asks for
two roots of symmetric matrices and loses no digits to a third. Of few rows d is too large: compare only distances of
equally many.
"""

# Shapes: N rows, F features.

from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """Mean, [F], and covariance, [F, F], in float64."""

    mean: Tensor
    covariance: Tensor


def fit_gaussian(features_NF: Tensor) -> Gaussian:
    """The Gaussian of a set of at least two rows; its covariance divides by N - 1."""
    if features_NF.dim() != 2 or len(features_NF) < 2:
        raise ValueError(f"features must be [rows, features] with at least 2 rows, got {tuple(features_NF.shape)}")
    if not torch.isfinite(features_NF).all():
        raise ValueError("features must be finite: a distance to anything else means nothing")
    features_NF = features_NF.double()
    return Gaussian(features_NF.mean(0), torch.cov(features_NF.T).reshape(features_NF.shape[1], -1))


def gaussian_distance(one: Gaussian, other: Gaussian) -> float:
    """The squared Fréchet distance of two Gaussians; never below 0."""
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"both sets must have the same features, got {len(one.mean)} and {len(other.mean)}")
    between = (one.mean - other.mean).square().sum().item()
    overlap = torch.linalg.svdvals(root(one.covariance) @ root(other.covariance)).sum().item()
    spread = (one.covariance.trace() + other.covariance.trace()).item() - 2 * overlap
    return max(0.0, float(between + spread))


def frechet_distance(one_NF: Tensor, other_NF: Tensor) -> float:
    """That of the Gaussians of two sets of features."""
    return gaussian_distance(fit_gaussian(one_NF), fit_gaussian(other_NF))


def root(matrix_FF: Tensor) -> Tensor:
    """The symmetric square root of a covariance; eigenvalues below 0 are rounding, and count as 0."""
    values_F, vectors_FF = torch.linalg.eigh(matrix_FF)
    rooted: Tensor = (vectors_FF * values_F.clamp(min=0).sqrt()) @ vectors_FF.T
    return rooted
