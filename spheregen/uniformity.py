"""Tests of uniformity on a sphere of any dimension.

Points are [n, ...], read as n directions in R^L, their lengths being left out of account. Each statistic has, for
independent uniform directions, the mean of the χ² distribution that it is compared with, exactly, for every n and L:

    Rayleigh   S = n·L·R̄²                                    L degrees of freedom
    Bingham    S = n·L(L+2)/2·(tr T² − 1/L), T = Σ u·uᵀ / n   (L−1)(L+2)/2 degrees of freedom

(Mardia and Jupp, Directional Statistics, 10.4 and 10.7). Both are sums over pairs of directions of terms that are
uncorrelated under uniformity, u·u′ and (u·u′)² − 1/L, from which their variance is exactly (1 − 1/n) times that of χ².
Dividing the deviation from the mean by √(1 − 1/n) therefore leaves a statistic with χ²'s own mean and variance, whether
there are more points than dimensions or fewer (as L grows χ² becomes normal, and so do they: Paindaveine and Verdebout,
Bernoulli 22, 2016).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F


class Test(NamedTuple):
    """A statistic, the degrees of freedom of the χ² it is compared with, and how likely as large a one is by chance."""

    statistic: float
    df: int
    p: float

    @property
    def z(self) -> float:
        """Standard deviations above the mean: how strong the departure is, where p is too small to tell."""
        return (self.statistic - self.df) / math.sqrt(2 * self.df)


def directions(points: Tensor) -> Tensor:
    """Unit vectors [n, L] in float64, on the CPU."""
    return F.normalize(points.detach().cpu().flatten(1).double(), dim=1)


def mean_resultant_length(points: Tensor) -> float:
    """R̄ = ‖mean direction‖: 1 where all agree; about 1/√n for n uniform ones."""
    return float(directions(points).mean(0).norm())


def rayleigh(points: Tensor) -> Test:
    """Whether directions have a mean. Sensitive to one preferred side of the sphere; two opposite ones cancel."""
    n, dimension = (u := directions(points)).shape
    return _test(n * dimension * float(u.mean(0).square().sum()), dimension, n)


def bingham(points: Tensor) -> Test:
    """Whether directions spread equally along all axes. Sensitive to preferred axes, opposite sides alike."""
    n, dimension = (u := directions(points)).shape
    moments = u.T @ u if dimension < n else u @ u.T  # tr T² is the squared norm of either, / n²
    excess = float(moments.square().sum()) / n - n / dimension
    return _test(dimension * (dimension + 2) / 2 * excess, (dimension - 1) * (dimension + 2) // 2, n)


def projections(dimension: int, generator: torch.Generator, blocks: int = 16, size: int = 3) -> Tensor:
    """Random projections to R^size, orthonormal within and among each other: [blocks, dimension, size].

    Fewer where the dimension holds no more. They are the axes of a Gaussian matrix (its QR factor): a uniform direction
    then projects to exactly uniform directions, independent between blocks, where the Gaussian matrix itself would
    stretch them.
    """
    blocks = min(blocks, dimension // size)
    axes = torch.linalg.qr(torch.randn(dimension, blocks * size, generator=generator, dtype=torch.float64)).Q
    return axes.view(dimension, blocks, size).transpose(0, 1)


def projected_bingham(points: Tensor, axes: Tensor) -> Test:
    """Bingham's test on each of some projections [blocks, L, size], which are independent under uniformity, together.

    What Figure 7 shows to the eye. Weak: of the projections of almost any cloud in many dimensions, most look uniform.
    """
    u = directions(points)
    return pooled([bingham(u @ block) for block in axes])


def pooled(tests: Sequence[Test]) -> Test:
    """Independent tests as one: statistics and degrees of freedom add up."""
    statistic, df = sum(test.statistic for test in tests), sum(test.df for test in tests)
    return Test(statistic, df, float(stats.chi2.sf(statistic, df)))


def pairwise_angles(points: Tensor) -> Tensor:
    """The angles between all pairs of directions, in degrees: [n·(n − 1)/2]."""
    u = directions(points)
    i, j = torch.triu_indices(len(u), len(u), offset=1)
    return torch.rad2deg(torch.acos((u @ u.T)[i, j].clamp(-1, 1)))


def _test(statistic: float, df: int, n: int) -> Test:
    if n < 2:
        raise ValueError(f"a test of uniformity needs at least 2 points, got {n}")
    calibrated = df + (statistic - df) / math.sqrt(1 - 1 / n)
    return Test(calibrated, df, float(stats.chi2.sf(calibrated, df)))
