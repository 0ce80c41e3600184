"""Distances of features against closed forms, explicit sums and torch-fidelity."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from gan import distances
from gan.distances import (
    FeatureSet,
    Gaussian,
    corrected,
    expected_coverage,
    extrapolated,
    frechet,
    frechet_bias,
    frechet_distance,
    kernel_distance,
    neighborhoods,
    square_root,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def points(*shape: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> FeatureSet:
    return FeatureSet(scale * normal(*shape, seed=seed) + shift)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed=9).double()).Q


# The Fréchet distance


@pytest.mark.parametrize("rotated", [False, True])
def test_frechet_distance_of_gaussians_that_commute(rotated):
    """|m|^2 + sum (a - b)^2: catches a dropped mean or trace, and a root of the wrong product."""
    a, b = torch.tensor([1.0, 2.0, 0.0, 3.0]).double(), torch.tensor([2.0, 0.5, 1.0, 0.0]).double()
    q = rotation(4) if rotated else torch.eye(4).double()
    shift = torch.arange(4.0).double()
    fake = Gaussian(shift, q @ a.square().diag() @ q.T)
    real = Gaussian(torch.zeros(4).double(), q @ b.square().diag() @ q.T)
    expected = shift.square().sum().item() + (a - b).square().sum().item()
    assert frechet(fake, real, square_root(real.covariance)) == pytest.approx(expected, rel=1e-7)
    assert frechet(real, fake, square_root(fake.covariance)) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("num", "other"), [(300, 200), (40, 60)], ids=["full rank", "few images"])
def test_frechet_distance_is_that_of_torch_fidelity_and_of_the_dual_form(num, other):
    """The trace of the root is a nuclear norm of products of images: no D x D root in it."""
    fake, real = points(num, 50).features.abs(), 1.1 * points(other, 50, seed=1).features.abs()
    found = frechet_distance(FeatureSet(fake), FeatureSet(real))
    x, y = fake.double(), real.double()
    statistics = [fid_features_to_statistics(side) for side in (x, y)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found == pytest.approx(theirs, rel=1e-6)
    x0, y0 = x - x.mean(0), y - y.mean(0)
    root = torch.linalg.svdvals(x0 @ y0.T).sum() / math.sqrt((num - 1) * (other - 1))
    traces = x.var(0).sum() + y.var(0).sum()
    dual = ((x.mean(0) - y.mean(0)).square().sum() + traces - 2 * root).item()
    assert found == pytest.approx(dual, rel=1e-6)


@pytest.mark.parametrize("num", [500, 30])
def test_frechet_distance_follows_its_arguments(num):
    x, y = points(num, 40), points(500, 40, seed=1, scale=1.5, shift=0.3)
    distance, q = frechet_distance(x, y), rotation(40).float()
    trace = x.gaussian.covariance.trace().item()
    assert abs(frechet_distance(x, x)) < 1e-6 * trace
    assert frechet_distance(y, x) == pytest.approx(distance, rel=1e-6)
    rotated = (FeatureSet(side.features @ q) for side in (x, y))
    assert frechet_distance(*rotated) == pytest.approx(distance, rel=1e-5)
    tripled = (FeatureSet(3 * side.features) for side in (x, y))
    assert frechet_distance(*tripled) == pytest.approx(9 * distance, rel=1e-5)


@pytest.mark.parametrize("num", [100, 200, 400])
def test_corrected_distance_of_equal_distributions_is_small(num):
    """Catches a correction of one side, or by the floor as it is: the sizes are all different."""
    bias = frechet_bias(points(300, 20), points(300, 20, seed=1))
    fake, real = points(num, 20, seed=2), points(600, 20, seed=3)
    plain = frechet_distance(fake, real)
    assert abs(corrected(plain, fake, real, bias)) < 0.2 * plain
    far = points(num, 20, seed=2, shift=1.0)  # |c|^2 = 20
    assert corrected(frechet_distance(far, real), far, real, bias) == pytest.approx(20, rel=0.15)


def test_correction_needs_more_images_than_features():
    full, few = points(120, 100), points(119, 100, seed=1)
    assert math.isnan(frechet_bias(few, full))
    assert math.isnan(frechet_bias(full, few))
    assert math.isfinite(frechet_bias(full, full))
    assert corrected(1.0, full, few, 60.0) == pytest.approx(1 - 60 / 120 - 60 / 119)


def test_extrapolated_distance_has_no_bias_of_either_side():
    """Catches a real side that does not shrink, whose bias stays, and an unseeded choice."""
    same = extrapolated(points(2000, 16), points(2000, 16, seed=1), seed=0)
    plain = same.distances[-1]
    assert same.sizes == (500, 875, 1250, 1625, 2000)
    assert plain == pytest.approx(frechet_distance(points(2000, 16), points(2000, 16, seed=1)))
    assert abs(same.value) < min(3 * same.residual, plain / 3)
    assert all(large > small for large, small in pairwise(same.distances))
    far = extrapolated(points(2000, 16, shift=0.5), points(3000, 16, seed=1), seed=0)
    assert far.value == pytest.approx(16 * 0.25, abs=4 * far.residual + 0.2)
    assert extrapolated(points(2000, 16), points(2000, 16, seed=1), seed=0) == same
    assert extrapolated(points(2000, 16), points(2000, 16, seed=1), seed=1) != same


def test_extrapolation_needs_images_for_its_smallest_size():
    assert extrapolated(points(48, 10), points(48, 10), 0) is not None
    assert extrapolated(points(44, 10), points(100, 10), 0) is None
    assert extrapolated(points(100, 10), points(44, 10), 0) is None


@pytest.mark.parametrize(
    ("features", "rank"),
    [
        (normal(200, 6), 6),
        (1000 + normal(200, 6), 6),
        (normal(7, 6), 6),
        (normal(6, 6), 5),
        (normal(4, 6), 3),
        (normal(4, 6).repeat(50, 1), 3),
        (normal(1, 6).repeat(50, 1), 0),
        (normal(1, 6).repeat(50, 1) * (1 + 1e-7 * normal(50, 6, seed=1)), 0),
        (torch.zeros(50, 6), 0),
        (normal(200, 2) @ normal(2, 6), 2),
    ],
    ids=str,
)
def test_rank_counts_the_dimensions_that_images_span(features, rank):
    """Catches rounding that is taken for a dimension, and a mean that hides one."""
    assert FeatureSet(features).rank == rank


# The kernel distance


@pytest.mark.parametrize("block", [7, 1000])
def test_kernel_distance_is_the_unbiased_mmd_of_all_pairs_and_its_jackknife(monkeypatch, block):
    """Catches another kernel or scale, the biased estimate, a block that is lost at the end, and a
    standard error over one side alone."""
    monkeypatch.setattr(distances, "BLOCK", block)
    x, y = normal(8, 5).double(), normal(10, 5, seed=1).double() + 1

    def mmd(x: Tensor, y: Tensor) -> float:
        def k(a: Tensor, b: Tensor) -> float:
            return (a @ b / 5 + 1).item() ** 3

        def within(z: Tensor) -> float:
            pairs = [k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
            return sum(pairs) / len(pairs)

        return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))

    found = kernel_distance(FeatureSet(x), FeatureSet(y))
    assert found.value == pytest.approx(mmd(x, y), rel=1e-9)
    variance = 0.0
    for n, left_out in (
        (8, [mmd(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(8)]),
        (10, [mmd(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(10)]),
    ):
        variance += (n - 1) * torch.tensor(left_out, dtype=torch.float64).var(correction=0).item()
    assert found.error == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_kernel_distance_is_that_of_torch_fidelity_with_one_subset_of_all():
    x, y = points(60, 5), points(60, 5, seed=1, shift=0.5)
    theirs = kid_features_to_metric(
        x.features,
        y.features,
        kid_subsets=1,
        kid_subset_size=60,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=0,
        verbose=False,
    )
    ours = kernel_distance(x, y)
    assert ours.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    again = kernel_distance(FeatureSet(x.features[order]), y)
    assert again == pytest.approx(ours, rel=1e-5)


@pytest.mark.parametrize(("shift", "most"), [(0.0, 1.6), (0.3, 1.25)])
def test_standard_error_is_the_spread_of_other_images(shift, most):
    """Catches a deviation over subsets of the same images, which is 0 where a subset is all."""
    found = [
        kernel_distance(points(100, 8, seed=2 * i, shift=shift), points(150, 8, seed=2 * i + 1))
        for i in range(200)
    ]
    values = torch.tensor([each.value for each in found])
    errors = torch.tensor([each.error for each in found])
    assert 0.85 < errors.mean() / values.std() < most
    if not shift:
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(200)
        assert (values < 0).any()


# Neighbourhoods


@pytest.mark.parametrize("block", [7, 1000])
def test_precision_and_recall_are_those_of_torch_fidelity(monkeypatch, block):
    monkeypatch.setattr(distances, "BLOCK", block)
    fake, real = points(90, 6, scale=0.8), points(120, 6, seed=1)
    theirs = prc_features_to_metric(
        fake.features,
        real.features,
        prc_neighborhood=3,
        prc_batch_size=50,
        save_cpu_ram=True,
        verbose=False,
    )
    found = neighborhoods(fake, real, 3, 5)
    assert found.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert found.recall == pytest.approx(theirs["recall"], abs=1e-6)
    assert found.precision != found.recall


@pytest.mark.parametrize("block", [7, 1000])
def test_coverage_counts_real_images_with_a_fake_one_near(monkeypatch, block):
    """Catches `nearest fake` taken over one block, and the k-th of all with itself among them."""
    monkeypatch.setattr(distances, "BLOCK", block)
    fake, real = points(40, 4, seed=1), points(60, 4)
    own = torch.cdist(real.features, real.features).sort(dim=1).values[:, 5]
    expected = (torch.cdist(real.features, fake.features).amin(1) < own).double().mean().item()
    assert neighborhoods(fake, real, 3, 5).coverage == pytest.approx(expected)
    assert 0.5 < expected < 1


def test_coverage_of_known_sets():
    real = points(200, 3)
    assert neighborhoods(real, real, 3, 5) == (1, 1, 1)
    assert neighborhoods(points(200, 3, shift=100.0), real, 3, 5) == (0, 0, 0)
    once = FeatureSet(real.features[:1].repeat(200, 1))
    assert neighborhoods(once, real, 3, 5).coverage < 0.1
    modes = FeatureSet(torch.cat([real.features, real.features + 100]))
    assert neighborhoods(real, modes, 3, 5).coverage == 0.5


@pytest.mark.parametrize(("fakes", "reals"), [(200, 200), (600, 200), (100, 200)])
def test_coverage_of_equal_distributions_is_its_closed_form(fakes, reals):
    found = [
        neighborhoods(points(fakes, 6, seed=2 * i), points(reals, 6, seed=2 * i + 1), 3, 5).coverage
        for i in range(20)
    ]
    expected = expected_coverage(fakes, reals, 5)
    assert sum(found) / 20 == pytest.approx(expected, abs=0.02)
    if fakes == reals:
        assert expected == pytest.approx(1 - 2**-5, abs=3e-3)


@pytest.mark.parametrize(
    ("num", "known"),
    [(3, (False, False, False)), (4, (True, True, False)), (6, (True, True, True))],
)
def test_too_few_images_have_no_neighborhoods(num, known):
    found = neighborhoods(points(num, 3), points(num, 3, seed=1), 3, 5)
    assert tuple(map(math.isfinite, found)) == known


def test_rounded_products_do_not_reach_the_distances(monkeypatch):
    """Catches TF32, or bfloat16 on a CPU, which a user has allowed for the training."""
    x, y = points(50, 8), points(60, 8, seed=1)
    exact = kernel_distance(x, y), neighborhoods(x, y, 3, 5)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        x, y = FeatureSet(x.features), FeatureSet(y.features)
        assert kernel_distance(x, y) == pytest.approx(exact[0], rel=1e-5)
        assert neighborhoods(x, y, 3, 5) == pytest.approx(exact[1])
    finally:
        torch.set_float32_matmul_precision(before)
