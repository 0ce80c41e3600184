"""OCNN's penalty against dense matrices, orthogonal layers and the published code."""

import math
from itertools import product

import pytest
import reference
import torch
import torch.nn.functional as F
from torch import nn

from convnorm.penalties import ocnn, orthogonality


def drawn(*args, **options):
    torch.manual_seed(0)
    return nn.Conv2d(*args, bias=False, dtype=torch.float64, **options)


def ring_matrix(conv):
    """The matrix of a layer on a circular map, and its number of output positions.

    The map is wide enough that no kernel meets another around it, and the stride divides it.
    """
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    size = [s * -(-(2 * r + 1) // s) for s, r in zip(conv.stride, reach, strict=True)]

    def layer(x):
        x = F.pad(x, (0, reach[1], 0, reach[0]), "circular")
        return F.conv2d(x, conv.weight, None, conv.stride, 0, conv.dilation, conv.groups)

    A = reference.dense(layer, (conv.in_channels, *size))
    return A.flatten(0, 1), A.shape[1]


def distance(gram):
    return (gram - torch.eye(len(gram), dtype=gram.dtype)).square().sum().item()


GEOMETRIES = [
    *product([(3, 3), (2, 4), (1, 3)], [(1, 1), (2, 2), (1, 2)], [(1, 1), (2, 3)], [1, 2]),
    ((1, 1), (2, 2), (1, 1), 1),
    ((4, 4), (2, 2), (1, 1), 1),
    ((3, 3), (3, 3), (1, 1), 1),
    ((2, 2), (3, 3), (2, 2), 1),
    ((3, 3), (4, 6), (2, 4), 1),
    ((3, 3), (1, 1), (1, 1), 4),
]


@pytest.mark.parametrize(("kernel", "stride", "dilation", "groups"), GEOMETRIES)
def test_is_the_distance_of_the_dense_matrix(kernel, stride, dilation, groups):
    """Left out shifts, a misplaced identity, groups that meet, the two axes exchanged."""
    conv = drawn(4, 8, kernel, stride, dilation=dilation, groups=groups)
    A, positions = ring_matrix(conv)
    assert ocnn(conv).item() == pytest.approx(distance(A @ A.T) / positions, rel=1e-10)
    # Lemma 1: the distance of the columns is another by a constant.
    constant = 8 - 4 * math.prod(stride)
    columns = distance(A.T @ A) / positions
    assert ocnn(conv).item() == pytest.approx(columns + constant, rel=1e-10)


def space_to_depth(stride, out_channels, in_channels=3):
    """Kernels as large as the stride, of the rows of an orthogonal matrix."""
    conv = drawn(in_channels, out_channels, stride, stride)
    square = torch.randn(in_channels * stride**2, in_channels * stride**2, dtype=torch.float64)
    conv.weight.data.copy_(torch.linalg.qr(square)[0][:out_channels].view_as(conv.weight))
    return conv


def delta(channels, kernel_size, stride, **options):
    conv = drawn(channels, channels, kernel_size, stride, **options)
    nn.init.dirac_(conv.weight, groups=options.get("groups", 1))
    return conv


def two_taps(stride=1):
    """(0.6, 0, 0.8): orthogonal to itself shifted by 1, not by 2."""
    conv = drawn(1, 1, (1, 3), stride)
    conv.weight.data.copy_(torch.tensor([0.6, 0, 0.8]))
    return conv


@pytest.mark.parametrize(
    "conv",
    [
        space_to_depth(2, 12),
        space_to_depth(2, 5),
        space_to_depth(3, 27),
        delta(8, 3, 1),
        delta(8, 3, 2),
        delta(8, 5, 2, dilation=2),
        delta(8, 3, 2, groups=4),
        two_taps(stride=3),
    ],
    ids=lambda conv: f"{tuple(conv.weight.shape)}, {conv.stride}",
)
def test_zero_on_orthogonal_layers(conv):
    assert ocnn(conv).item() < 1e-6
    conv.weight.data[0] = conv.weight.data[-1] * 0.9
    assert ocnn(conv).item() > 0.03


def test_least_value_is_the_lemmas_constant_at_orthonormal_columns():
    """More outputs than inputs: a tight frame of 12 kernels for 8 inputs."""
    conv = drawn(2, 12, 2, 2)
    conv.weight.data.copy_(torch.linalg.qr(conv.weight.data.flatten(1))[0].view_as(conv.weight))
    assert ocnn(conv).item() == pytest.approx(12 - 2 * 4)
    ocnn(conv).backward()
    assert conv.weight.grad.abs().max() < 1e-10


def test_the_published_value_and_its_defects():
    """2.83 on an exactly orthogonal strided layer, 0 on a kernel of half the rank."""
    identity = delta(8, 3, 2)
    assert ocnn(identity).item() == 0.0
    assert ocnn(identity, as_published=True).item() == pytest.approx(math.sqrt(8))
    deficient = drawn(1, 1, 3)  # singular values from 0 to 1.414
    deficient.weight.data.zero_()
    deficient.weight.data[0, 0, 1, ::2] = 0.5**0.5
    assert ocnn(deficient).sqrt().item() == pytest.approx(0.707, abs=1e-3)
    assert ocnn(deficient, as_published=True).item() < 1e-12
    conv = drawn(4, 8, 3, padding=1)
    K = conv.weight
    target = torch.zeros(8, 8, 3, 3)
    target[range(8), range(8), 1, 1] = 1
    expected = torch.linalg.vector_norm(F.conv2d(K, K, padding=1) - target)
    torch.testing.assert_close(ocnn(conv, as_published=True), expected)


@pytest.mark.parametrize("out_channels", [3, 8])
def test_the_published_value_of_small_kernels_is_that_of_the_shorter_side(out_channels):
    conv = drawn(4, out_channels, 1, stride=2)
    s = torch.linalg.svdvals(conv.weight.flatten(1))
    expected = (s.square() - 1).square().sum().sqrt()
    torch.testing.assert_close(ocnn(conv, as_published=True), expected)


def test_descending_it_makes_a_layer_orthogonal():
    """A sign, a gradient that does not reach the weight."""
    conv = drawn(4, 8, 3, 2, padding=1)
    start = ocnn(conv).item()
    optimizer = torch.optim.SGD(conv.parameters(), 0.03, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        ocnn(conv).backward()
        optimizer.step()
    assert ocnn(conv).item() < 1e-3 * start
    A, _ = ring_matrix(conv)
    assert (torch.linalg.svdvals(A) - 1).abs().max() < 0.05


@pytest.mark.parametrize("as_published", [False, True])
def test_orthogonality_sums_over_all_convolutions(as_published):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1)), nn.Linear(4, 2))
    expected = ocnn(network[0], as_published) + ocnn(network[1][0], as_published)
    torch.testing.assert_close(orthogonality(network, as_published), expected)
    assert orthogonality(network[2]).item() == 0.0


@pytest.mark.parametrize("as_published", [False, True])
def test_float32_under_autocast(as_published):
    conv = nn.Conv2d(16, 16, 3)
    expected = ocnn(conv, as_published)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ocnn(conv, as_published), expected)
