"""Almost-orthogonal layers against the dense matrices of what they compute."""

import copy

import pytest
import reference
import torch
from torch import nn

from convnorm import Normalizer
from convnorm.aol import AOL, EPS

GEOMETRIES = [
    dict(zip(("kernel_size", "stride", "groups", "dilation"), values, strict=True))
    for values in [
        (1, 1, 1, 1),
        (1, 2, 1, 1),
        (3, 1, 1, 1),
        (3, 2, 1, 1),
        (4, 2, 1, 1),
        (4, 1, 2, 1),
        (4, 2, 2, 1),
        (3, 3, 2, 1),
        (3, 1, 1, 2),
        (3, 2, 1, 2),
        (3, 2, 2, 3),
        (3, (1, 4), 1, (3, 2)),
        ((2, 5), (2, 1), 2, 1),
    ]
]
each_geometry = pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: str([*g.values()]))


def convolution(geometry, channels=(2, 4), **options):
    """A random one in float64, and the same with its weight rescaled."""
    torch.manual_seed(0)
    plain = nn.Conv2d(*channels, **geometry, **options, dtype=torch.float64)
    return plain, Normalizer("aol")(copy.deepcopy(plain))


def pair(value):
    return (value, value) if isinstance(value, int) else value


@each_geometry
def test_columns_are_rescaled_by_their_products_with_all_columns(geometry):
    """The definition, at one pixel of each phase that is far from the border, and the bound.

    Catches rescaled outputs, which look alike and bound nothing, phases that are mixed up, groups
    that see each other, and a stride or a dilation that is left out.
    """
    k, s, d = (pair(geometry[name]) for name in ("kernel_size", "stride", "dilation"))
    reach = tuple(d * (k - 1) for k, d in zip(k, d, strict=True))
    plain, layer = convolution(geometry, padding=reach)
    size = (2, 2 * reach[0] + s[0], 2 * reach[1] + s[1])
    far = torch.zeros(size, dtype=torch.bool)
    far[:, reach[0] : reach[0] + s[0], reach[1] : reach[1] + s[1]] = True
    A, B = (reference.dense(each, size).flatten(0, 1) for each in (plain, layer))
    rescaled = A * ((A.T @ A).abs().sum(1) + EPS).rsqrt()
    torch.testing.assert_close(B[:, far.flatten()], rescaled[:, far.flatten()])
    assert torch.linalg.matrix_norm(B, 2) <= 1 + 1e-6


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 4])
@pytest.mark.parametrize("channels", [(3, 8), (8, 3)])
def test_the_operator_norm_is_at_most_one(kernel_size, stride, channels, padding_mode):
    geometry = {"kernel_size": kernel_size, "stride": stride}
    options = {"padding": (kernel_size - 1) // 2, "padding_mode": padding_mode}
    _, layer = convolution(geometry, channels, **options)
    assert 0.4 < reference.sigma_max(layer, (channels[0], 6, 6)) <= 1 + 1e-6


def test_the_bound_of_a_strided_layer_is_tighter_than_that_of_its_kernel():
    """64 to 64 channels of N(0, 1): 0.34 instead of 0.23."""
    torch.manual_seed(0)
    weight, norms = torch.randn(64, 64, 4, 4), []
    for step in ((2, 2), (1, 1)):
        conv = nn.Conv2d(64, 64, 4, 2, padding=1)
        conv.weight.data = AOL(step)(weight)
        norms.append(reference.sigma_max(conv, (64, 6, 6)))
    assert norms == pytest.approx([0.33, 0.22], abs=0.03)
    assert norms[0] > 1.4 * norms[1]


@each_geometry
@pytest.mark.parametrize("channels", [(8, 8), (4, 8)])
def test_an_isometry_is_left_alone(geometry, channels):
    layer, _ = convolution(geometry, channels)
    nn.init.dirac_(layer.weight, groups=layer.groups)
    before = layer.weight.detach().clone()
    weight = Normalizer("aol")(layer).weight
    torch.testing.assert_close(weight, before, rtol=EPS, atol=0)
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("plain", [nn.Conv2d(4, 6, 3, 2, groups=2), nn.Linear(7, 3)])
def test_a_factor_on_large_weights_changes_nothing(plain):
    parametrization = AOL((2, 2), groups=2) if isinstance(plain, nn.Conv2d) else AOL()
    once, thrice = (parametrization(factor * plain.weight.double()) for factor in (100, 300))
    torch.testing.assert_close(once, thrice, rtol=1e-8, atol=0)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_linear_layer_has_columns_rescaled(outputs):
    torch.manual_seed(0)
    plain = nn.Linear(50, outputs).double()
    P = plain.weight.detach().clone()
    weight = Normalizer("aol")(plain).weight
    d = ((P.T @ P).abs().sum(1) + EPS).rsqrt()
    torch.testing.assert_close(weight, P * d)
    assert torch.linalg.matrix_norm(weight, 2) <= 1
    if outputs == 1:
        closed = P.sign() * (P.abs() / P.abs().sum()).sqrt()
        torch.testing.assert_close(weight, closed, rtol=1e-3, atol=1e-4)
        assert weight.norm().item() == pytest.approx(1, abs=1e-5)


def test_a_head_of_many_inputs_needs_no_square_matrix():
    """8192 x 8192 products take 268 MB and seconds; a million inputs would take 4 TB."""
    torch.manual_seed(0)
    layer = Normalizer("aol")(nn.Linear(10**6, 1))
    assert layer.weight.norm().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("plain", [nn.Conv2d(3, 4, 3, 2), nn.Linear(3, 1), nn.Linear(3, 2)])
def test_an_input_without_weights_has_finite_values_and_gradients(plain):
    plain.weight.data[:, 0] = 0
    layer = Normalizer("aol")(plain)
    weight = layer.weight
    assert not weight[:, 0].any()
    (grad,) = torch.autograd.grad(
        weight.square().sum(), layer.parametrizations.weight.original, create_graph=True
    )
    grad.square().sum().backward()
    for each in (weight, grad, layer.parametrizations.weight.original.grad):
        assert each.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    weight = torch.randn(4, 1, 3, 2, dtype=torch.float64, requires_grad=True)
    parametrization = AOL((2, 1), groups=2)
    assert torch.autograd.gradcheck(parametrization, weight)
    assert torch.autograd.gradgradcheck(parametrization, weight)
