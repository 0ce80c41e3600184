"""Distances of two sets of features, and how much of one lies where the other does.

What follows from one set alone is kept with it, so that a reference which many generators are held
against is not worked through again for each.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from convnorm.experiment.streams import generator
from convnorm.precision import widened

BLOCK = 2048  # rows of a matrix of pairs at a time: 80 MB against 10,000 columns
LEAST = 1e-6  # of the features' size: what varies less is the rounding of float32
NEIGHBORS = 5  # the largest k of a k-th nearest neighbour
FULL = 1.2  # times as many features as dimensions: from there on the bias of FD is c / N
SIZES = 5  # of the subsets from which FD is extrapolated, from a quarter of all to all


class Gaussian(NamedTuple):
    """Mean (D,) and covariance (D, D) in float64."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features (N, D) of N images, all finite, and what follows from them."""

    features: Tensor

    def __len__(self) -> int:
        return len(self.features)

    @property
    def is_full(self) -> bool:
        """Whether there are enough for the bias of a Fréchet distance to be c / N."""
        return len(self) >= FULL * self.features.shape[1]

    @cached_property
    def gaussian(self) -> Gaussian:
        """The Gaussian fit."""
        wide = self.features.double()
        mean = wide.mean(dim=0)
        centered = wide - mean
        return Gaussian(mean, centered.T @ centered / (len(self) - 1))

    @cached_property
    def rank(self) -> int:
        """How many dimensions the features span around their mean: at most D, and below N."""
        wide = self.features.double()
        if len(self) > wide.shape[1]:
            scatter = self.gaussian.covariance * (len(self) - 1)
        else:
            centered = wide - self.gaussian.mean
            scatter = centered @ centered.T
        return int((torch.linalg.eigvalsh(scatter) > LEAST**2 * wide.square().sum()).sum())

    @cached_property
    def root(self) -> Tensor:
        """The square root of the covariance."""
        return square_root(self.gaussian.covariance)

    @cached_property
    def similarities(self) -> Tensor:
        """(N,) in float64: the sum of the kernel of each with all others."""
        return torch.cat(
            [
                kernel.sum(dim=1, dtype=torch.float64) - kernel.diagonal(start).double()
                for start, kernel in _by_rows(self, self, _kernel)
            ]
        )

    @cached_property
    def nearest(self) -> Tensor:
        """(N, NEIGHBORS + 1): the least distances of each to all, itself among them, ascending."""
        num = min(NEIGHBORS + 1, len(self))
        parts = [
            distances.topk(num, dim=1, largest=False).values
            for _, distances in _by_rows(self, self, torch.cdist)
        ]
        return torch.cat(parts)

    def radii(self, k: int) -> Tensor:
        """(N,): the distance of each to its k-th nearest other; NaN where there are no k others."""
        if k < self.nearest.shape[1]:
            return self.nearest[:, k]
        return self.nearest.new_full((len(self),), math.nan)


def square_root(covariance: Tensor) -> Tensor:
    """Return the symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def frechet(fake: Gaussian, real: Gaussian, root: Tensor) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017, eq. 6).

    The trace of the root is that of (R S1 R)^(1/2) with R = S2^(1/2), which is symmetric: 8 times
    faster than eigenvalues of the product, and never complex.

    root: R.
    """
    eigenvalues = torch.linalg.eigvalsh(root @ fake.covariance @ root)
    trace = (fake.covariance.trace() + real.covariance.trace()) / 2
    trace = trace - eigenvalues.clamp(min=0).sqrt().sum()
    return ((fake.mean - real.mean).square().sum() + 2 * trace).item()


def frechet_distance(fake: FeatureSet, real: FeatureSet) -> float:
    """Return the Fréchet distance of the two Gaussian fits.

    It is biased upwards: that of equal distributions is about c / 2 (1 / N + 1 / M), not 0.
    """
    return frechet(fake.gaussian, real.gaussian, real.root)


def frechet_bias(first: FeatureSet, second: FeatureSet) -> float:
    """Return c / 2 of the bias c / 2 (1 / N + 1 / M), from two halves of one set of images.

    NaN where these are too few for the law to hold.
    """
    if not (first.is_full and second.is_full):
        return math.nan
    return frechet_distance(first, second) / (1 / len(first) + 1 / len(second))


def corrected(distance: float, fake: FeatureSet, real: FeatureSet, bias: float) -> float:
    """Return a Fréchet distance without its bias, as far as that is the one of real images."""
    return distance - bias * (1 / len(fake) + 1 / len(real))


@dataclass(frozen=True)
class Extrapolation:
    """FD at infinitely many images: a line through FD at `sizes` over 1 / size, both sides equal.

    slope: of the line. residual: standard deviation of `distances` around it.
    """

    value: float
    slope: float
    residual: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def extrapolated(fake: FeatureSet, real: FeatureSet, seed: int) -> Extrapolation | None:
    """Return FD without the bias of finite sets (Chong and Forsyth 2020), or None for too few.

    They shrink the generated side alone, so that the real side's bias stays; here both shrink.

    seed: of the subsets.
    """
    most = min(len(fake), len(real))
    sizes = tuple(round(most * (4 + 3 * i) / 16) for i in range(SIZES))
    pairs = [
        [
            FeatureSet(_subset(side.features, size, seed, role, size))
            for role, side in (("fake", fake), ("real", real))
        ]
        for size in sizes
    ]
    if not all(side.is_full for pair in pairs for side in pair):
        return None
    distances = tuple(frechet_distance(*pair) for pair in pairs)
    x, y = torch.tensor(sizes, dtype=torch.float64).reciprocal(), torch.tensor(distances).double()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    value = y.mean() - slope * x.mean()
    residual = ((y - value - slope * x).square().sum() / (SIZES - 2)).sqrt()
    return Extrapolation(value.item(), slope.item(), residual.item(), sizes, distances)


def _subset(features: Tensor, num: int, *key: int | str) -> Tensor:
    order = torch.randperm(len(features), generator=generator("cpu", "extrapolation", *key))
    return features[order[:num].to(features.device)]


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float


def kernel_distance(fake: FeatureSet, real: FeatureSet) -> Estimate:
    """Return the squared MMD with the kernel (x'y / D + 1)^3 (Binkowski et al. 2018).

    Over all pairs of images: unbiased, so that equal distributions give about 0, of either sign.
    Its standard error is the jackknife's over the images of both sides (Efron and Stein 1981): of
    other images from the same generator. Between equal distributions it is up to 1.4 times too
    large.
    """
    cross_fake, cross_real = _cross_similarities(fake, real)
    n, m, cross = len(fake), len(real), cross_fake.sum()
    within_fake, within_real = fake.similarities.sum(), real.similarities.sum()

    def distance(a: Tensor, b: Tensor, ab: Tensor, n: int, m: int) -> Tensor:
        return a / (n * (n - 1)) + b / (m * (m - 1)) - 2 * ab / (n * m)

    variance = 0.0
    for total, own, others, each, size, other in (
        (within_fake, fake.similarities, within_real, cross_fake, n, m),
        (within_real, real.similarities, within_fake, cross_real, m, n),
    ):
        left_out = distance(total - 2 * own, others, cross - each, size - 1, other)
        variance += (size - 1) * left_out.var(correction=0).item()
    return Estimate(distance(within_fake, within_real, cross, n, m).item(), math.sqrt(variance))


def _cross_similarities(fake: FeatureSet, real: FeatureSet) -> tuple[Tensor, Tensor]:
    """Sums of the kernel between the sides: (N,) over real images and (M,) over fake ones."""
    rows, columns = [], 0.0
    for _, kernel in _by_rows(fake, real, _kernel):
        rows.append(kernel.sum(dim=1, dtype=torch.float64))
        columns = columns + kernel.sum(dim=0, dtype=torch.float64)
    return torch.cat(rows), columns


class Neighborhoods(NamedTuple):
    """Shares in [0, 1] of images that lie near images of the other side; NaN for too few images."""

    precision: float
    recall: float
    coverage: float


def neighborhoods(fake: FeatureSet, real: FeatureSet, k: int, k_coverage: int) -> Neighborhoods:
    """Return precision, recall (Kynkäänniemi et al. 2019, eq. 2) and coverage (Naeem et al. 2020).

    Precision is the share of fake images inside the ball of a real one, which reaches to its k-th
    nearest other; recall is the share of real images inside the ball of a fake one; coverage is the
    share of real images whose ball, up to the `k_coverage`-th, has a fake one in it.
    """
    balls, fake_balls = real.radii(k), fake.radii(k)
    inside, nearest = torch.zeros_like(balls, dtype=torch.bool), torch.full_like(balls, math.inf)
    precise = 0
    for start, distances in _by_rows(fake, real, torch.cdist):
        precise += (distances <= balls).any(dim=1).sum().item()
        inside |= (distances <= fake_balls[start : start + len(distances), None]).any(dim=0)
        nearest = torch.minimum(nearest, distances.amin(dim=0))
    covered = real.radii(k_coverage)
    has_balls = not (balls.isnan().any() or fake_balls.isnan().any())
    return Neighborhoods(
        precise / len(fake) if has_balls else math.nan,
        inside.double().mean().item() if has_balls else math.nan,
        math.nan if covered.isnan().any() else (nearest < covered).double().mean().item(),
    )


def expected_coverage(num_fake: int, num_real: int, k: int) -> float:
    """Return the coverage that equal distributions have, in any number of dimensions: how probable
    it is that not all `k` nearest to a real image are real (Naeem et al. 2020, eq. 9).
    """
    real = math.prod((num_real - i) / (num_real + num_fake - i) for i in range(1, k + 1))
    return 1 - real


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _by_rows(
    a: FeatureSet, b: FeatureSet, pairwise: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Yield the matrix of pairs of a and b in blocks of rows, each with the index of its first."""
    rows, columns = widened(a.features), widened(b.features)
    for start in range(0, len(rows), BLOCK):
        yield start, pairwise(rows[start : start + BLOCK], columns)
