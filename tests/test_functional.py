"""The functions of ConvNorm against formulas written out, and their derivatives."""

import json
import math
from pathlib import Path

import pytest
import reference
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks

from convnorm import filtering, functional
from convnorm.energy import autocorrelation, spectral_energy
from convnorm.filtering import circular_filter, matrix_is_faster
from convnorm.functional import conv_norm2d, conv_norm2d_adjoint, spectral_gain

# kernel, stride, padding (left, right, top, bottom), dilation, groups
GEOMETRIES = {
    "plain": ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "no padding": ((3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "even kernel, stride": ((4, 4), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    "even kernel, same": ((2, 4), (1, 1), (1, 2, 0, 1), (1, 1), 1),
    "rectangular, pairs": ((1, 3), (2, 1), (1, 0, 0, 0), (1, 2), 1),
    "stride of 3 and 2": ((3, 2), (3, 2), (1, 0, 1, 1), (1, 1), 2),
    "dilation": ((3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 1),
    "dilation 2 x 1, stride": ((3, 3), (2, 2), (1, 1, 2, 2), (2, 1), 1),
    "depthwise": ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 4),
    "pointwise": ((1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
}
every_route = pytest.mark.parametrize("route", ["fft", "matrix", "spectrum"], indirect=True)
every_grid = pytest.mark.parametrize("grid", ["full", "native"])


@pytest.fixture
def route(request, monkeypatch) -> str:
    """The way that a normalized convolution is computed, where the grid leaves a choice."""
    monkeypatch.setattr(filtering, "matrix_is_faster", lambda *_: request.param == "matrix")
    monkeypatch.setattr(
        functional,
        "spectrum_is_faster",
        lambda x, weight, groups, ring: request.param == "spectrum" and groups == 1,
    )
    return request.param


def problem(kernel=(3, 3), groups=1, size=(8, 7), batch_size=2, requires_grad=False):
    torch.manual_seed(0)
    x = torch.randn(batch_size, 4, *size, dtype=torch.float64)
    weight = torch.randn(4, 4 // groups, *kernel, dtype=torch.float64)
    return x.requires_grad_(requires_grad), weight.requires_grad_(requires_grad)


@every_route
@every_grid
@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_equals_the_explicit_exponentials(route, geometry, padding_mode, grid):
    """A dilation, stride or shift lost on the way, a wrong alias, crop or wrap."""
    kernel, *rest = geometry
    x, weight = problem(kernel, rest[-1])
    options = {"grid": grid, "eps": 1e-3}
    y = conv_norm2d(x, weight, *rest, padding_mode, **options)
    expected = reference.explicit(x, weight, *rest, padding_mode, **options)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


@every_route
@every_grid
@pytest.mark.parametrize("padding", [(4, 4, 4, 4), (5, 0, 1, 3)])
def test_padding_beyond_the_kernel(route, grid, padding):
    """A negative crop, which would silently cut the map."""
    x, weight = problem(size=(5, 6))
    y = conv_norm2d(x, weight, (2, 1), padding, grid=grid)
    expected = reference.explicit(x, weight, (2, 1), padding, grid=grid)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


@every_route
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 1, 1), (3, 2, 1), (4, 2, 1), (3, 1, 0), (5, 1, 4), (1, 2, 0)],
)
def test_full_without_eps_is_the_published_formulation(route, kernel, stride, padding):
    """Values and both gradients: a gain that lets gradients through, or the wrong adjoint."""
    x, weight = problem((kernel, kernel), requires_grad=True)
    ours = conv_norm2d(x, weight, (stride, stride), (padding,) * 4, eps=0.0)
    theirs = reference.published(x, weight, stride, padding)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, (x, weight), direction),
        torch.autograd.grad(theirs, (x, weight), direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


# On an 8 x 8 ring that the stride divides: kernel, padding, options.
ISOMETRIES = [
    ((3, 3), (1, 1, 1, 1), {}),
    ((3, 3), (1, 1, 1, 1), {"stride": (2, 2)}),
    ((4, 4), (1, 2, 1, 2), {"stride": (2, 2)}),
    ((5, 5), (2, 2, 2, 2), {"stride": (4, 2)}),
    ((1, 3), (1, 1, 0, 0), {"stride": (1, 2)}),
    ((3, 3), (2, 2, 2, 2), {"dilation": (2, 2)}),
    ((2, 3), (1, 1, 1, 2), {"dilation": (3, 1)}),
    ((3, 3), (1, 1, 1, 1), {"groups": 2}),
    ((3, 3), (1, 1, 1, 1), {"groups": 4}),
    ((1, 1), (0, 0, 0, 0), {}),
]


@every_grid
@pytest.mark.parametrize(("kernel", "padding", "options"), ISOMETRIES, ids=str)
def test_every_channel_is_an_isometry_on_a_circular_map(grid, kernel, padding, options):
    """A_o A_o^T = I: a gain at other frequencies, or of a spectrum without its aliases."""
    weight = problem(kernel, options.get("groups", 1))[1]
    options = {"padding": padding, "padding_mode": "circular", "grid": grid, "eps": 0, **options}
    matrix = reference.dense(lambda x: conv_norm2d(x, weight, **options), (4, 8, 8))
    outputs = 64 // math.prod(options.get("stride", (1, 1)))
    identity = torch.eye(outputs, dtype=torch.float64).expand(4, -1, -1)
    torch.testing.assert_close(matrix @ matrix.mT, identity)


def test_autocorrelation_is_the_sum_over_shifted_products():
    weight = problem((2, 3))[1]
    padded = torch.nn.functional.pad(weight, (2, 2, 1, 1))
    for y, x in [(0, 0), (1, 2), (-1, 1), (0, -2)]:
        shifted = padded[:, :, 1 + y : 3 + y, 2 + x : 5 + x]
        expected = (weight * shifted).sum((1, 2, 3))
        torch.testing.assert_close(autocorrelation(weight)[:, 1 + y, 2 + x], expected)


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize("ring", [(6, 5), (2, 2), (1, 4)])
def test_energy_on_any_ring_even_smaller_than_the_kernel(ring, dilation, stride):
    weight = problem((3, 2))[1]
    expected = reference.energy(weight, ring, dilation, stride)[..., : ring[1] // 2 + 1]
    energy = spectral_energy(weight, ring, dilation, stride)
    torch.testing.assert_close(energy, expected, rtol=1e-9, atol=1e-9)


def test_gain_is_that_of_the_scaled_kernel_divided_by_the_scale():
    """An absolute eps: a layer with small weights would be another layer."""
    weight = problem()[1].float()
    for scale in (1e-12, 1e12):
        scaled = spectral_gain(weight * scale, (9, 9)) * scale
        torch.testing.assert_close(scaled, spectral_gain(weight, (9, 9)))


def test_gain_is_bounded_and_one_for_a_kernel_that_is_zero():
    weight = torch.tensor(list(reference.DEGENERATE.values()))
    gain = spectral_gain(weight, (33, 33), eps=1e-6)
    norms = weight.square().sum((1, 2, 3)).sqrt()
    assert (gain[0] == 1).all()
    assert (gain[1:].amax((1, 2)) <= 1001 / norms[1:]).all()
    assert gain[1:].amax((1, 2)).max() > 100  # the zeros of the spectrum are on this grid


@every_route
@every_grid
@pytest.mark.parametrize("through_gain", [False, True])
def test_kernels_with_zeros_in_the_spectrum_stay_finite(monkeypatch, route, grid, through_gain):
    """0 * inf. A map of 31 pixels and a 3 x 3 kernel: the box has zeros on the grid of 33."""
    weight = torch.tensor(list(reference.DEGENERATE.values())).requires_grad_()
    x = torch.randn(2, 4, 31, 31).requires_grad_()
    y = conv_norm2d(
        x,
        weight,
        (1, 1),
        (1,) * 4,
        groups=4,
        grid=grid,
        gradient_through_gain=through_gain,
    )
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert weight.grad.isfinite().all()
    assert not y[:, 0].any()


@every_route
@every_grid
@pytest.mark.parametrize("through_gain", [False, True])
def test_first_and_second_derivatives(monkeypatch, route, grid, through_gain):
    """Numerical derivatives; with a detached gain those of the layer with the gain held fixed."""
    x, weight = problem(size=(3, 4), batch_size=1, requires_grad=True)
    x, weight = x[:, :2].detach().requires_grad_(), weight[:2, :2].detach().requires_grad_()
    frozen = weight.detach().clone()
    true_gain = spectral_gain

    def gain(kernel, *rest):
        return true_gain(kernel if through_gain else frozen, *rest)

    monkeypatch.setattr(functional, "spectral_gain", gain)

    def layer(x, weight):
        return conv_norm2d(
            x, weight, (1, 2), (1,) * 4, grid=grid, eps=1e-2, gradient_through_gain=through_gain
        )

    assert gradcheck(layer, (x, weight))
    assert gradgradcheck(layer, (x, weight))


@every_route
@every_grid
def test_only_one_map_is_saved(route, grid):
    """A map kept for the backward pass twice: the convolution's output need not be."""
    x, weight = problem(size=(9, 9), batch_size=256, requires_grad=True)
    saved = []
    with saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = conv_norm2d(x, weight, (1, 1), (1,) * 4, grid=grid)
    y.sum().backward()
    maps = {t.untyped_storage().data_ptr() for t in saved if t.numel() >= x.numel() / 2}
    if route == "spectrum" and grid == "full":
        assert len(maps) == 1  # x at all frequencies
    else:
        assert maps == {x.untyped_storage().data_ptr()}


@every_grid
def test_tables_made_in_inference_mode_serve_training(grid):
    """A cached inference tensor cannot be saved for a backward pass."""
    kernel = (7, 5) if grid == "full" else (5, 7)  # of no other test: nothing is cached yet
    x, weight = problem(kernel)
    options = {"grid": grid, "gradient_through_gain": True}
    with torch.inference_mode():
        conv_norm2d(x, weight, **options)
    conv_norm2d(x, weight.requires_grad_(), **options).sum().backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": (1, 4, 2, 9)}, r"kernel covers \(3, 3\) pixels.*\(2, 9\)"),
        ({"x": (1, 4, 5, 5), "dilation": (3, 1)}, r"kernel covers \(7, 3\) pixels"),
        ({"x": (8, 8)}, r"\(N, I, H, W\) or \(I, H, W\), not \(8, 8\)"),
        ({"filter": "fft"}, "filter must be one of .*'fft'"),
        ({"padding": (2, 1, 0, 0), "padding_mode": "circular"}, "one turn of the ring"),
        ({"grid": "same"}, "grid must be one of .*'same'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(arguments, message):
    x = torch.zeros(arguments.pop("x", (1, 4, 8, 8)))
    with pytest.raises(ValueError, match=message):
        conv_norm2d(x, torch.ones(4, 4, 3, 3), **arguments)


@every_grid
@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_an_empty_batch_gives_an_empty_map(geometry, padding_mode, grid):
    """In every geometry the shape and the gradients of a batch that has images."""
    kernel, *rest = geometry
    x, weight = problem(kernel, rest[-1], size=(13, 12), requires_grad=True)
    options = {"grid": grid, "gradient_through_gain": True}
    full = conv_norm2d(x, weight, *rest, padding_mode, **options)
    empty = conv_norm2d(x[:0], weight, *rest, padding_mode, **options)
    assert empty.shape == (0, *full.shape[1:])
    assert empty.dtype == full.dtype
    gradients = torch.autograd.grad(empty.sum(), (x, weight), create_graph=True)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("kept", [None, range(1, 12, 3)])
def test_a_filter_of_no_maps(kept):
    gain = torch.rand(4, 13, 7, requires_grad=True)
    y = circular_filter(torch.rand(0, 4, 13, 12).bfloat16(), gain, kept, kept)
    assert y.shape == ((0, 4, 13, 12) if kept is None else (0, 4, 4, 4))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert not gain.grad.any()


def test_gain_of_a_white_kernel_is_flat():
    """G is 1 / |W| where the autocorrelation is a delta: the normalization of the DFT."""
    weight = torch.zeros(1, 1, 3, 3)
    weight[..., 1, 2] = 2.0
    expected = torch.full((1, 5, 4), 0.5 / math.sqrt(1 + 1e-6))
    torch.testing.assert_close(spectral_gain(weight, (5, 6)), expected)


def kernel_of_an_affine(kernel, requires_grad=False):
    """Neither even nor odd, so that its spectrum is not real and its adjoint another."""
    torch.manual_seed(1)
    affine = torch.randn(4, 1, *(k - 1 + k % 2 for k in kernel), dtype=torch.float64)
    return affine.requires_grad_(requires_grad)


def on_the_ring(y, affine):
    """The affine by a circular convolution of each channel."""
    rows, columns = (k // 2 for k in affine.shape[2:])
    y = F.pad(y, (columns, columns, rows, rows), "circular")
    return F.conv2d(y, affine, groups=len(affine))


@every_route
@every_grid
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_a_circular_affine_convolves_on_the_ring_of_the_filter(route, geometry, padding_mode, grid):
    """Values and gradients: a kernel that is turned around, or a ring that is not the filter's."""
    kernel, stride, padding, dilation, groups = geometry
    x, weight = problem(kernel, groups, requires_grad=True)
    affine = kernel_of_an_affine(kernel, requires_grad=True)
    geometry = (stride, padding, dilation, groups, padding_mode)
    y = conv_norm2d(x, weight, *geometry, grid=grid, affine=affine)
    if grid == "native" or kernel == (1, 1):
        expected = on_the_ring(conv_norm2d(x, weight, *geometry, grid=grid), affine)
    else:
        whole = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if padding_mode == "circular":  # a turn, begun where the first output is
            turn = (padding[0], whole[1] - padding[0], padding[2], whole[0] - padding[2])
        else:
            turn = (whole[1], whole[1], whole[0], whole[0])
        ring = conv_norm2d(x, weight, (1, 1), turn, dilation, groups, padding_mode)
        first = (turn[2] - padding[2], turn[0] - padding[0])
        ring = on_the_ring(ring, affine)[..., first[0] :: stride[0], first[1] :: stride[1]]
        expected = ring[..., : y.shape[2], : y.shape[3]]
    torch.testing.assert_close(y, expected)
    direction = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, (x, weight, affine), direction),
        torch.autograd.grad(expected, (x, weight, affine), direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@every_grid
@pytest.mark.parametrize("with_affine", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_the_adjoint_is_the_adjoint(geometry, padding_mode, with_affine, grid):
    """Against products of random maps."""
    kernel, *rest = geometry
    x, weight = problem(kernel, rest[-1])
    options = {"grid": grid, "affine": kernel_of_an_affine(kernel) if with_affine else None}
    image = conv_norm2d(x, weight, *rest, padding_mode, **options)
    y = torch.randn_like(image)
    back = conv_norm2d_adjoint(y, weight, (8, 7), *rest, padding_mode, **options)
    assert back.shape == x.shape
    torch.testing.assert_close((image * y).sum(), (x * back).sum())


@every_grid
@pytest.mark.parametrize(("size", "matrix"), [((5, 5), True), ((13, 11), False)])
def test_a_forward_under_a_fake_mode_leaves_real_ones_alone(grid, size, matrix):
    """Tables made under it and kept; real ones handed to it."""
    x, weight = problem((5, 2), size=size)  # a kernel that no other test leaves tables of
    for _ in range(2):
        with FakeTensorMode() as mode:
            fake = conv_norm2d(mode.from_tensor(x), mode.from_tensor(weight), grid=grid)
        real = conv_norm2d(x, weight, grid=grid)
        assert type(fake) is FakeTensor
        assert type(real) is torch.Tensor
        assert fake.shape == real.shape
        assert matrix_is_faster(real[0, 0].numel(), len(x), "cpu") == matrix
        torch.testing.assert_close(real, reference.explicit(x, weight, grid=grid))


def test_the_rule_for_a_gpu_takes_the_faster_one_where_it_was_measured():
    """A rule of a CPU; 15 % slower at most is what the measurements' noise allows."""
    record = Path(__file__).parents[1] / "results" / "check_device_h100.json"
    cases = json.loads(record.read_text())["parts"]["filter"]["cases"]
    judged = 0
    for name, case in cases.items():
        times = case["numbers"].get("ms", {})
        if len(times) < 2:
            continue
        batch_size, size = int(name.split()[1].rstrip(",")), int(name.split()[-1])
        chosen = "matrix" if matrix_is_faster(size**2, batch_size, "cuda") else "fft"
        assert times[chosen] <= 1.15 * min(times.values()), name
        judged += 1
    assert judged == 18
