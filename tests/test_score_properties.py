"""What is true of scores of any features."""

import pytest
import torch
from torch import Tensor

from gan.distances import (
    FeatureSet,
    corrected,
    extrapolated,
    frechet_bias,
    frechet_distance,
    kernel_distance,
    neighborhoods,
)


def normal(num: int, width: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed)) + shift


def rotated(features: Tensor) -> Tensor:
    width = features.shape[1]
    return features @ torch.linalg.qr(normal(width, width, seed=9)).Q


def shuffled(features: Tensor) -> Tensor:
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(3))
    return features[order]


@pytest.mark.parametrize("change", [rotated, shuffled, lambda x: 7 * x, lambda x: x + 5])
def test_neighborhoods_follow_distances_alone(change):
    """Catches scores of the order of images, and balls of a size that is given."""
    fake, real = normal(150, 6, 0, shift=0.3), normal(200, 6, 1)
    before = neighborhoods(FeatureSet(fake), FeatureSet(real), 3, 5)
    after = neighborhoods(FeatureSet(change(fake)), FeatureSet(change(real)), 3, 5)
    assert after == pytest.approx(before, abs=0.006)  # rounding may move an image over an edge
    assert all(0.3 < share < 1 for share in before)


@pytest.mark.parametrize("change", [rotated, shuffled])
def test_kernel_distance_follows_products_alone(change):
    fake, real = normal(150, 6, 0, shift=0.3), normal(200, 6, 1)
    before = kernel_distance(FeatureSet(fake), FeatureSet(real))
    after = kernel_distance(FeatureSet(change(fake)), FeatureSet(change(real)))
    assert after == pytest.approx(before, rel=1e-4)


def test_kernel_distance_of_equal_distributions_is_zero_within_its_error():
    """Catches a biased estimate, and an error that is too small, in the features' own size."""
    found = [
        kernel_distance(FeatureSet(normal(60, 16, 2 * i)), FeatureSet(normal(90, 16, 2 * i + 1)))
        for i in range(200)
    ]
    inside = [abs(each.value) < 1.96 * each.error for each in found]
    assert sum(inside) / 200 > 0.92


def test_corrected_distance_is_near_nothing_with_thrice_as_many_images_as_features():
    """Where the bias is c / N. Catches a correction by the floor as it is, of half as many."""
    for seed in range(3):
        sides = [FeatureSet(normal(num, 100, 10 * seed + num)) for num in (600, 900, 300, 301)]
        fake, real, *halves = sides
        plain = frechet_distance(fake, real)
        assert abs(corrected(plain, fake, real, frechet_bias(*halves))) < 0.1 * plain


def test_copies_raise_the_frechet_distance_and_lower_coverage_and_recall():
    """A generator that has learned a few images by heart."""
    pool, real = normal(400, 8, 0), FeatureSet(normal(400, 8, 1))
    found = [FeatureSet(pool[: 400 // copies].repeat(copies, 1)) for copies in (1, 4, 20)]
    distances = [frechet_distance(fake, real) for fake in found]
    near = [neighborhoods(fake, real, 3, 5) for fake in found]
    assert distances == sorted(set(distances))
    coverages = [each.coverage for each in near]
    assert coverages == sorted(set(coverages), reverse=True)
    assert near[0].recall > 0.5 > near[1].recall == near[2].recall == 0
    assert near[2].precision > 0.5  # which does not see it


def test_scores_draw_nothing():
    """Catches a choice by the global generator, which would change the training around it."""
    fake, real = FeatureSet(normal(60, 8, 0)), FeatureSet(normal(60, 8, 1))
    before = torch.get_rng_state()
    frechet_distance(fake, real)
    kernel_distance(fake, real)
    neighborhoods(fake, real, 3, 5)
    assert extrapolated(fake, real, seed=0) is not None
    assert torch.equal(torch.get_rng_state(), before)
