"""Parametrized weights against singular value decompositions in float64, and their gradients."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from convnorm import Normalizer
from convnorm.parametrizations import ONI, OWN, OutsideAutocast, Scale, UnitRows, centred

WIDE, TALL, SQUARE = (12, 3, 3, 3), (24, 2, 3, 3), (16, 16, 1, 1)


def drawn(shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype, generator=torch.manual_seed(0))


def singular_values(weight):
    return torch.linalg.svdvals(weight.detach().flatten(1).double())


def rows_of(layer):
    return layer.weight.detach().flatten(1)


def parts(weight, count):
    return weight.flatten(1).tensor_split(count)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 2.0, 3.0, 1e3])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [(WIDE, 1), (TALL, 2), (SQUARE, 2), ((64, 27), 3), ((7, 2), 7), ((5, 1), 5)],
)
def test_own_rows_are_orthonormal_in_the_fewest_groups(shape, groups, factor):
    """A group of as many centred rows as columns has a singular value 0, one of a row all 1."""
    weight = OWN()(factor * drawn(shape))
    assert weight.shape == shape
    for part in parts(weight, groups):
        assert ((singular_values(part) - 1).abs() < 1e-3).all()
        if part.shape[1] > 1:
            assert part.sum(1).abs().max() < 1e-4


def test_own_is_the_nearest_orthonormal_matrix():
    """The polar factor, not an orthonormal basis of the rows (Gram-Schmidt, Cholesky)."""
    Z = drawn(WIDE, torch.float64)
    U, _, Vh = torch.linalg.svd(Z.flatten(1) - Z.flatten(1).mean(1, keepdim=True), False)
    torch.testing.assert_close(OWN()(Z).flatten(1), U @ Vh)


def explicit_oni(Z, iterations):
    """The iteration on the singular values themselves; the mean is along the longer side."""
    matrix = Z.flatten(1)
    matrix = matrix - matrix.mean(int(matrix.shape[0] <= matrix.shape[1]), keepdim=True)
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.pow(4).sum().pow(0.25)  # |Z Z^T|_F^(1/2)
    for _ in range(iterations):
        s = 1.5 * s - 0.5 * s**3
    return (U * s @ Vh).view_as(Z)


@pytest.mark.parametrize("iterations", [0, 1, 3, 5])
@pytest.mark.parametrize("shape", [WIDE, TALL, SQUARE])
def test_oni_moves_each_singular_value_by_the_polynomial(shape, iterations):
    Z = drawn(shape, torch.float64)
    torch.testing.assert_close(ONI(iterations)(Z), explicit_oni(Z, iterations))


@pytest.mark.parametrize("factor", [0.1, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("iterations", [10, 30])
@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_oni_ends_orthogonal_and_stays_so(shape, iterations, factor):
    """In float32 the iteration of the published code has lost everything after 15 iterations."""
    weight = ONI(iterations)(factor * drawn(shape))
    assert ((singular_values(weight) - 1).abs() < 0.01).all()


def test_oni_of_a_square_matrix_gives_one_dimension_to_the_mean():
    s = singular_values(ONI(20)(drawn(SQUARE)))
    assert ((s[:-1] - 1).abs() < 0.01).all()
    assert s[-1] < 1e-4


def test_published_oni_loses_a_dimension_and_the_scale_in_the_column_form():
    """And only there; the division that is left out in the code makes the iteration converge."""
    Z = drawn((64, 27)) * 27**-0.5 / 3**0.5  # as nn.Conv2d draws the first layer of a ResNet
    published = ONI(3, as_published=True)
    s = singular_values(published(Z))
    assert s[0] < 0.5
    assert s[-1] < 1e-5
    assert singular_values(published(2 * Z))[0] > 1e3
    torch.testing.assert_close(ONI(3)(2 * Z), ONI(3)(Z))
    assert torch.equal(published(drawn(WIDE)), ONI(3)(drawn(WIDE)))


@pytest.mark.parametrize("parametrization", [ONI, OWN])
@pytest.mark.parametrize("groups", [2, 5, 12, 100])
def test_groups_of_rows_are_orthogonalized_by_themselves(parametrization, groups):
    """Sizes that do not divide the rows; more groups than rows: each row of norm 1."""
    options = {"iterations": 15} if parametrization is ONI else {}
    weight = parametrization(groups=groups, **options)(drawn(WIDE))
    count = min(groups, 12)
    for part in parts(weight, count):
        assert ((singular_values(part) - 1).abs() < 0.01).all()
    assert singular_values(weight)[0] > 1.1
    first = parametrization(**options)(drawn(WIDE)[: math.ceil(12 / count)])
    torch.testing.assert_close(weight[: len(first)], first)


@pytest.mark.parametrize("parametrization", [ONI, OWN])
@pytest.mark.parametrize("conv_groups", [2, 4, 12])
def test_groups_of_a_convolution_are_orthogonalized_by_themselves(parametrization, conv_groups):
    """Rows that see different inputs are orthogonal already: one matrix of all would mix them."""
    options = {"iterations": 15} if parametrization is ONI else {}
    Z = drawn((12, 1, 3, 3))
    weight = parametrization(conv_groups=conv_groups, **options)(Z)
    for part, group in zip(weight.chunk(conv_groups), Z.chunk(conv_groups), strict=True):
        assert ((singular_values(part) - 1).abs() < 0.01).all()
        torch.testing.assert_close(part, parametrization(**options)(group))


@pytest.mark.parametrize("module", [OWN(), OWN(groups=2), ONI(3), ONI(3, groups=2)], ids=str)
@pytest.mark.parametrize("shape", [(3, 2, 1, 2), (4, 3)])
def test_first_and_second_derivatives(module, shape):
    """The second is what a gradient penalty needs."""
    Z = drawn(shape, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(module, Z)
    assert torch.autograd.gradgradcheck(module, Z)


@pytest.mark.parametrize("module", [OWN(), ONI(3)], ids=str)
def test_transforms_of_torch_func(module):
    Z, target = drawn((4, 3), torch.float64), drawn((4, 3), torch.float64).cos()

    def loss(Z: torch.Tensor) -> torch.Tensor:
        return (module(Z) - target).square().sum()

    leaf = Z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(Z), expected)
    both = torch.func.vmap(torch.func.grad(loss))(torch.stack([Z, target]))
    torch.testing.assert_close(both[0], expected)
    second = torch.autograd.functional.hessian(loss, Z)
    torch.testing.assert_close(torch.func.jacrev(torch.func.grad(loss))(Z), second)


@pytest.mark.parametrize("module", [OWN(), ONI(3)], ids=str)
def test_derivatives_where_all_singular_values_are_equal(module):
    """Those of an SVD are infinite there, and there these methods live."""
    Z = centred(drawn((3, 6), torch.float64), 1)
    Z = torch.linalg.qr(Z.T)[0].T.contiguous()
    assert (singular_values(Z) - 1).abs().max() < 1e-12
    assert torch.autograd.gradcheck(module, Z.requires_grad_())
    assert torch.autograd.gradgradcheck(module, Z)


@pytest.mark.parametrize("module", [UnitRows(), OWN(), ONI(), ONI(as_published=True)], ids=str)
@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
@pytest.mark.parametrize("rows", [slice(1, 2), slice(None)])
def test_filters_of_zeros_give_no_nan(module, shape, rows):
    """A pruned filter, and a layer that starts at zero."""
    Z = drawn(shape) * 0.1
    Z[rows] = 0
    weight = module(Z.requires_grad_())
    (gradient,) = torch.autograd.grad((weight * drawn(shape)).sum(), Z)
    assert weight.isfinite().all()
    assert gradient.isfinite().all()
    if shape == (4, 9):
        assert weight[rows].abs().max() < 1e-3


@pytest.mark.parametrize("module", [OWN(), ONI()], ids=str)
def test_float32_under_autocast(module):
    """Rows orthonormal to 1e-2 only, an eigh that has no half precision in a backward pass."""
    Z = drawn(WIDE).requires_grad_()
    expected = module(Z)
    with torch.autocast("cpu", torch.bfloat16):
        weight = OutsideAutocast(module)(Z)
        (gradient,) = torch.autograd.grad(weight.sin().sum(), Z, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), Z)
    assert torch.equal(weight, expected)
    assert gradient.isfinite().all()
    assert second.isfinite().all()


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(2, 3, 3), lambda: nn.Linear(5, 3)])
def test_scale(make, learned):
    """One factor for each row, over all dimensions of the rows."""
    layer = make()
    weight = layer.weight.detach().clone()
    count = len(list(layer.parameters()))
    parametrize.register_parametrization(layer, "weight", Scale(2, 3 if learned else 0))
    torch.testing.assert_close(layer.weight.detach(), 2 * weight)
    assert len(list(layer.parameters())) == count + learned
    if learned:
        layer.parametrizations.weight[0].scale.data[1] = 5
        torch.testing.assert_close(layer.weight[1].detach(), 5 * weight[1])
        torch.testing.assert_close(layer.weight[0].detach(), 2 * weight[0])


# Bidirectional spectral norm


def bidirectional(conv, steps=200):
    layer = Normalizer("bidirectional")(conv).train()
    for _ in range(steps):
        layer.weight  # noqa: B018
    return layer.eval()


def reshapings(weight, groups=1):
    """The largest singular value of a kernel's matrix, and of that of its transpose."""
    blocks = weight.detach().chunk(groups)
    rows = torch.linalg.matrix_norm(weight.detach().flatten(1), 2)
    columns = torch.cat([block.transpose(0, 1).flatten(1) for block in blocks])
    return rows, torch.linalg.matrix_norm(columns, 2)


@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), ((2, 4), 1), (3, 2), (3, 4), (1, 1)])
def test_bidirectional_is_the_mean_of_the_norms_of_both_reshapings(kernel, groups):
    """Not of the normalized weights, nor one reshaping twice."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 12, kernel, groups=groups, dtype=torch.float64)
    weight = conv.weight.detach().clone()
    s1, s2 = reshapings(weight, groups)
    if kernel != 1:
        assert abs(s1 - s2) > 0.02 * s1
    else:
        torch.testing.assert_close(s1, s2)  # of a matrix both are the same
    expected = weight / ((s1 + s2) / 2)
    torch.testing.assert_close(bidirectional(conv, 1000).weight, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("channels", [(3, 8), (8, 3), (6, 6)])
def test_bidirectional_is_spectral_norm_for_kernels_of_one_tap_and_for_linear_layers(channels):
    for make in (lambda: nn.Conv2d(*channels, 1), lambda: nn.Linear(*channels)):
        layers = []
        for kind in ("bidirectional", "spectral"):
            torch.manual_seed(0)
            layer = Normalizer(kind)(make().double())
            for _ in range(200):
                layer.weight  # noqa: B018
            layers.append(layer.eval())
        torch.testing.assert_close(layers[0].weight, layers[1].weight, rtol=1e-6, atol=1e-8)


def test_bidirectional_takes_a_factor_away_and_is_the_same_for_the_transpose():
    torch.manual_seed(0)
    plain, scaled, transposed = (nn.Conv2d(*c, 3).double() for c in ((4, 9), (4, 9), (9, 4)))
    scaled.weight.data.copy_(plain.weight * 7)
    transposed.weight.data.copy_(plain.weight.transpose(0, 1))
    plain, scaled, transposed = map(bidirectional, (plain, scaled, transposed))
    torch.testing.assert_close(scaled.weight, plain.weight, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        transposed.weight.transpose(0, 1), plain.weight, rtol=1e-6, atol=1e-9
    )


def test_bidirectional_lets_the_gradient_through_its_norms():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, 3, dtype=torch.float64)
    twin = conv.weight.detach().clone().requires_grad_()
    layer = bidirectional(conv, 1000)
    layer.weight.sin().sum().backward()
    s1 = torch.linalg.matrix_norm(twin.flatten(1), 2)
    s2 = torch.linalg.matrix_norm(twin.transpose(0, 1).flatten(1), 2)
    (twin / ((s1 + s2) / 2)).sin().sum().backward()
    torch.testing.assert_close(
        layer.parametrizations.weight.original.grad, twin.grad, rtol=1e-4, atol=1e-6
    )


# Weight standardization


def test_rows_are_standardized_by_the_unbiased_deviation():
    """A norm of sqrt(n - 1), not of 1 and not of sqrt(n)."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3)
    rows = rows_of(Normalizer("weight_standardization")(conv))
    torch.testing.assert_close(rows.mean(1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(rows.norm(dim=1), torch.full((5,), 26**0.5), rtol=1e-3, atol=0)


def test_standardized_rows_do_not_see_a_factor_or_a_shift():
    torch.manual_seed(0)
    plain, moved = nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 6, 3, groups=2)
    factor, shift = torch.rand(2, 6, 1, 1, 1) + 0.5
    moved.weight.data.copy_(factor * plain.weight + shift)
    normalize = Normalizer("weight_standardization")
    torch.testing.assert_close(
        rows_of(normalize(moved)), rows_of(normalize(plain)), rtol=1e-3, atol=1e-3
    )


def test_a_row_of_one_number_stays_and_one_of_equal_numbers_is_finite():
    normalize = Normalizer("weight_standardization")
    single = nn.Conv2d(1, 4, 1)
    expected = single.weight.detach().clone()
    assert torch.equal(normalize(single).weight, expected)
    equal = nn.Conv2d(2, 4, 3)
    nn.init.constant_(equal.weight, 0.3)
    layer = normalize(equal)
    layer.weight.square().sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()
    assert layer.weight.abs().max() < 1e-2
