"""Singular values and bounds against dense matrices: the identity pushed through the layer."""

import math

import numpy as np
import pytest
import reference
import torch
from torch import nn

from convnorm import CATALOGUE, ConvNorm2d, Normalizer, symbols
from convnorm.composite import NoSymbol, composite_of
from convnorm.gram import gram_bounds, norm_bound
from convnorm.placement import placed_convolutions
from convnorm.singular_values import layer_spectra, singular_values, summary_of
from convnorm.spectrum import operator_norm
from convnorm.symbols import circular_symbol, enclosing_symbol, matrices

DOUBLE = torch.float64


def dense_values(function, size) -> torch.Tensor:
    return torch.linalg.svdvals(reference.dense(function, size).flatten(0, 1))


def all_values(layer, size, behind=None, dtype=DOUBLE) -> list[torch.Tensor]:
    composite = composite_of(layer.eval(), behind, dtype)
    return singular_values(circular_symbol(composite, size))


def test_spectra_of_a_layer_are_named_by_their_stages():
    """Those of the convolution are the first, those of all that the layer does are the last."""
    layer = conv_norm(stride=2)
    found = layer_spectra(layer, (6, 4), DOUBLE)
    assert list(found) == ["conv", "gain", "affine", "batch_norm"]
    for values, expected in zip(found.values(), all_values(layer, (6, 4)), strict=True):
        assert_equal(values, expected)


def assert_equal(found: torch.Tensor, expected: torch.Tensor):
    assert len(found) == len(expected)
    assert (found - expected).abs().max().item() < 1e-10


def conv_norm(inputs=6, outputs=6, kernel=3, stride=1, dilation=1, groups=1, **options):
    """With circular padding that keeps the map, an uneven affine and an uneven BatchNorm."""
    torch.manual_seed(0)
    kernel, dilation = nn.modules.utils._pair(kernel), nn.modules.utils._pair(dilation)
    padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    geometry = (inputs, outputs, kernel, stride, padding, dilation, groups)
    options = {"padding_mode": "circular", "dtype": DOUBLE, **options}
    layer = ConvNorm2d(*geometry, **options)
    if layer.batch_norm is not None:
        uneven(layer.batch_norm)
    return layer.eval()


def uneven(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Factors of both signs, as in a trained network."""
    with torch.no_grad():
        norm.weight.uniform_(-2, 2)
        norm.running_var.uniform_(0.3, 2)
        norm.running_mean.uniform_(-1, 1)
    return norm


@pytest.mark.parametrize("affine_mode", ["same", "circular"])
@pytest.mark.parametrize("grid", ["full", "native"])
@pytest.mark.parametrize(
    ("geometry", "size"),
    [
        ({}, (5, 4)),
        ({"stride": 2}, (6, 4)),
        ({"stride": 3, "outputs": 4, "kernel": 5}, (6, 6)),
        ({"stride": 4}, (4, 8)),
        ({"stride": (1, 2), "kernel": (3, 5), "scale": 0.5}, (3, 6)),
        ({"dilation": 2}, (5, 6)),
        ({"dilation": (1, 2), "stride": 2}, (4, 6)),
        ({"groups": 2, "outputs": 4, "stride": 2}, (4, 4)),
        ({"groups": 3}, (4, 5)),
        ({"groups": 6, "outputs": 12, "stride": 2}, (4, 4)),
        ({"kernel": 1, "stride": 2}, (4, 4)),
        ({"inputs": 1, "outputs": 3}, (4, 4)),
    ],
)
def test_every_stage_of_a_layer_has_the_values_of_its_matrix(geometry, size, grid, affine_mode):
    """A filter on the wrong side of the stride, aliases lost, groups mixed, a wrong half grid."""
    layer = conv_norm(**geometry, grid=grid, affine_mode=affine_mode)
    composite = composite_of(layer, dtype=DOUBLE)
    stages = reference.stages(layer)
    assert composite.stages == tuple(stages)
    assert composite.missing is None
    found = singular_values(circular_symbol(composite, size))
    for function, values in zip(stages.values(), found, strict=True):
        assert_equal(values, dense_values(function, (layer.in_channels, *size)))
    assert_equal(found[-1], dense_values(layer, (layer.in_channels, *size)))


def test_a_wider_circular_affine_stands_before_the_stride_of_a_1x1_kernel():
    """The kernel alone is a factor on any ring; with that affine on its ring it is a filter."""
    layer = conv_norm(kernel=1, stride=2, affine_mode="circular", affine_size=3, batch_norm=False)
    assert not layer.is_pointwise
    assert_equal(all_values(layer, (6, 4))[-1], dense_values(layer, (6, 6, 4)))


@pytest.mark.parametrize("kind", CATALOGUE)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("output_first", [False, True])
def test_every_kind_has_the_values_of_what_it_computes(kind, stride, output_first):
    """Its weight and what follows; or the convolution alone, and why there is no more."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride, padding=1, padding_mode="circular")
    options = {"affine": True, "batch_norm": True, "multiplier": True, "scale": 1.5}
    layer = Normalizer(kind, **options)(conv, output_first=output_first)
    for _ in range(3):
        layer(torch.randn(3, 4, 6, 4) * 2 + 1)
    for norm in (m for m in layer.modules() if isinstance(m, nn.BatchNorm2d)):
        uneven(norm)
    layer = layer.double().eval()
    composite = composite_of(layer, dtype=DOUBLE)
    found = singular_values(circular_symbol(composite, (6, 4)))
    if CATALOGUE[kind].is_affine:
        assert composite.missing is None
        assert_equal(found[-1], dense_values(layer, (4, 6, 4)))
    else:
        assert composite.stages == ("conv",)
        assert "has no symbol" in composite.missing
        assert_equal(found[-1], dense_values(layer[1 if output_first else 0], (4, 6, 4)))


def test_a_batch_norm_elsewhere_in_the_network_counts_to_its_convolution():
    """By what it is given, not by its place: torchvision's modules, and a skip that it shares."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
            self.bn1, self.bn2 = (uneven(nn.BatchNorm2d(4)) for _ in range(2))
            self.first = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
            self.unused = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.bn1(x).relu()) + x + self.bn2(x.relu())

    torch.manual_seed(0)
    network = Network().double().train()
    placed = placed_convolutions(network, torch.zeros(1, 2, 5, 4, dtype=DOUBLE))
    assert network.training
    assert [placed[name].behind for name in ("first", "last", "unused")] == [
        network.bn1,
        None,
        None,
    ]
    assert placed["first"].input_size == (2, 5, 4)
    assert placed["last"].input_size == (4, 5, 4)
    assert placed["unused"].input_size is None
    found = all_values(network.first, (5, 4), network.bn1)
    whole = nn.Sequential(network.first, network.bn1).eval()
    assert_equal(found[-1], dense_values(whole, (2, 5, 4)))
    assert not [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("grid", ["full", "native"])
def test_a_map_that_the_stride_does_not_divide_is_taken_larger(grid):
    layer = conv_norm(stride=(2, 3), grid=grid)
    symbol = circular_symbol(composite_of(layer, dtype=DOUBLE), (5, 4))
    assert (symbol.ring, symbol.coarse) == ((6, 6), (3, 2))
    assert_equal(singular_values(symbol)[-1], dense_values(layer, (6, 6, 6)))


@pytest.mark.parametrize("layer", [conv_norm(stride=2, groups=2), conv_norm(kernel=1)])
def test_frequencies_come_in_parts_that_change_nothing(layer, monkeypatch):
    """A part that holds more than it may, or a frequency that is lost between two."""
    whole = all_values(layer, (6, 10))
    monkeypatch.setattr(symbols, "CHUNK", 200)
    symbol = circular_symbol(composite_of(layer, dtype=DOUBLE), (6, 10))
    sizes = [A.numel() for _, A, _ in matrices(symbol)]
    one = 6 * (3 * 4 if layer.groups == 2 else 6)
    assert max(sizes) <= max(200, one)
    for found, expected in zip(singular_values(symbol), whole, strict=True):
        assert torch.allclose(found, expected, atol=1e-13)


def test_a_kernel_of_one_pixel_needs_one_frequency():
    layer = conv_norm(kernel=1, stride=2)
    symbol = circular_symbol(composite_of(layer), (64, 64))
    assert [len(times) for _, _, times in matrices(symbol)] == [1] * 4
    assert all(times.sum() == 32 * 32 for _, _, times in matrices(symbol))


def test_a_summary_is_that_of_all_values():
    """Mirrored frequencies counted once, percentiles from the wrong end, a mean for a sum."""
    layer = conv_norm(stride=2)
    symbol = circular_symbol(composite_of(layer, dtype=DOUBLE), (6, 8))
    values = dense_values(layer, (6, 6, 8)).numpy()
    found = summary_of(singular_values(symbol)[-1], symbol)
    assert found.count == len(values) == 6 * 3 * 4
    assert found.largest == pytest.approx(values[0])
    assert found.smallest == pytest.approx(values[-1])
    percentiles = [found.p1, found.p50, found.p99]
    assert percentiles == pytest.approx(np.percentile(values, (1, 50, 99)))
    assert found.condition == pytest.approx(values[0] / values[-1])
    assert found.spread == pytest.approx(np.divide(*np.percentile(values, (99, 1))))
    assert found.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2)


def test_what_rounding_decides_is_called_infinite():
    """The smallest value of a singular matrix in float32 is no number to divide by."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    with torch.no_grad():
        conv.weight[1] = conv.weight[0] + conv.weight[2]
    symbol = circular_symbol(composite_of(conv), (6, 6))
    found = summary_of(singular_values(symbol)[0], symbol)
    assert 0 < found.smallest < found.resolution < 1e-5
    assert math.isinf(found.condition)
    nn.init.zeros_(conv.weight)
    symbol = circular_symbol(composite_of(conv), (6, 6))
    found = summary_of(singular_values(symbol)[0], symbol)
    assert (found.largest, found.stable_rank, found.condition) == (0, 0, math.inf)
    nn.init.constant_(conv.weight, math.nan)
    symbol = circular_symbol(composite_of(conv), (6, 6))
    found = summary_of(singular_values(symbol)[0], symbol)
    assert math.isnan(found.largest)
    assert math.isnan(found.stable_rank)
    assert math.isnan(norm_bound(composite_of(conv), (6, 6)))


def test_the_dtype_decides_how_small_values_are_known():
    layer = conv_norm(dtype=torch.float32)
    single, double = (all_values(layer, (6, 6), dtype=dtype)[-1] for dtype in (None, DOUBLE))
    assert (single.dtype, double.dtype) == (torch.float32, DOUBLE)
    assert torch.allclose(single.double(), double, atol=1e-5)


class Same(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.abs())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Same(2, 2, 3), "Same has a forward of its own"),
        (nn.Sequential(nn.ReLU()), "Sequential holds no convolution of its own"),
    ],
)
def test_what_is_no_convolution_is_refused_by_name(layer, reason):
    with pytest.raises(NoSymbol, match=reason):
        composite_of(layer)


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (nn.ReLU(), "ReLU has no symbol"),
        (nn.BatchNorm2d(4, track_running_stats=False), "without running statistics"),
        (nn.Conv2d(4, 4, 1), "second convolution"),
        (nn.Conv2d(4, 4, 3, groups=4), "moves the map"),
    ],
)
def test_what_follows_and_has_no_symbol_is_left_out_with_a_reason(behind, reason):
    composite = composite_of(nn.Sequential(nn.Conv2d(2, 4, 3), behind))
    assert composite.stages == ("conv",)
    assert reason in composite.missing
    with pytest.raises(NoSymbol, match=reason):
        norm_bound(composite, (6, 6))


# ------------------------------------------------------------------------------------- the bound


def low_pass(layer: nn.Conv2d) -> nn.Conv2d:
    with torch.no_grad():
        layer.weight.abs_()
    return layer


LAYERS = {
    "random": lambda: nn.Conv2d(4, 5, 3, padding=1),
    "valid": lambda: nn.Conv2d(4, 5, 3),
    "far padding": lambda: nn.Conv2d(4, 5, 3, padding=4),
    "low-pass": lambda: low_pass(nn.Conv2d(4, 5, 3, padding=1)),
    "strided": lambda: nn.Conv2d(4, 5, 4, 2, padding=1),
    "sparse": lambda: nn.Conv2d(4, 5, 2, 3, padding=1),
    "dilated": lambda: nn.Conv2d(4, 5, 3, padding=2, dilation=2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: low_pass(nn.Conv2d(4, 4, 5, padding=2, groups=4)),
    "circular": lambda: nn.Conv2d(4, 5, 3, padding=1, padding_mode="circular"),
    "circular, less": lambda: nn.Conv2d(4, 5, 5, 2, padding=1, padding_mode="circular"),
    "ConvNorm": lambda: conv_norm(4, 5, padding_mode="zeros"),
    "ConvNorm, strided": lambda: conv_norm(4, 5, stride=2, padding_mode="zeros"),
    "ConvNorm, far padding": lambda: ConvNorm2d(4, 5, 3, 2, padding=4),
    "ConvNorm, circular": lambda: conv_norm(4, 5, stride=3),
    "ConvNorm, ring affine": lambda: conv_norm(
        4, 5, stride=2, affine_mode="circular", padding_mode="zeros"
    ),
    "ConvNorm, native": lambda: conv_norm(4, 5, stride=2, grid="native", padding_mode="zeros"),
    "ConvNorm, native ring": lambda: conv_norm(4, 5, stride=2, grid="native"),
    "ConvNorm, 1x1": lambda: conv_norm(4, 5, 1, stride=2, padding_mode="zeros"),
}


@pytest.mark.parametrize("size", [(6, 6), (7, 5)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_norm_lies_between_lanczos_and_the_bound(name, size):
    """On zero padding the ring of the map itself is too small: 0.1 % below the truth and more."""
    torch.manual_seed(1)
    layer = LAYERS[name]().double().eval()
    truth = dense_values(layer, (4, *size))[0].item()
    bound = norm_bound(composite_of(layer, dtype=DOUBLE), size)
    assert truth * (1 - 1e-12) <= bound
    below = operator_norm(layer, torch.Size((1, 4, *size)))
    assert below <= truth * (1 + 1e-9)
    assert below == pytest.approx(truth, rel=1e-3)
    if "ConvNorm" not in name:  # nothing is lost but the border: small maps are all border
        assert bound <= 1.5 * truth


def test_the_ring_of_the_map_itself_bounds_nothing_with_zeros_around_it():
    """Why the bound takes a longer ring: an alternating kernel that a ring of 3 cannot follow."""
    conv = nn.Conv2d(1, 1, (1, 3), padding=(0, 1), bias=False).double()
    conv.weight.data = torch.tensor([1.0, -1.0, 1.0], dtype=DOUBLE).view(1, 1, 1, 3)
    truth = dense_values(conv, (1, 1, 3))[0].item()
    own = all_values(conv, (1, 3))[0][0].item()
    assert own < truth <= norm_bound(composite_of(conv, dtype=DOUBLE), (1, 3))
    layer = conv_norm(1, 1, (1, 3), padding_mode="zeros", batch_norm=False)
    nn.init.dirac_(layer.weight)
    layer.affine.weight.data.copy_(conv.weight)
    assert dense_values(layer, (1, 1, 3))[0].item() == pytest.approx(truth)
    assert truth <= norm_bound(composite_of(layer, dtype=DOUBLE), (1, 3))


@pytest.mark.parametrize("padding", [(0, 0), (1, 3), (2, 4), (4, 5)])
def test_the_ring_of_a_gain_is_the_one_that_the_layer_has(padding):
    """On another one the gain is another, and what is bounded is another layer's norm."""
    torch.manual_seed(0)
    layer = ConvNorm2d(2, 3, 3, 1, padding, (1, 2), affine=False, batch_norm=False, dtype=DOUBLE)
    symbol = enclosing_symbol(composite_of(layer, dtype=DOUBLE), (7, 6))
    gained = torch.cat([A[:, 0] for stage, A, _ in matrices(symbol) if stage == 1])
    n, m = symbol.ring
    response = torch.fft.irfft2(gained.view(n, m // 2 + 1, 3, 2), s=(n, m), dim=(0, 1))
    impulses = torch.zeros(2, 2, 7, 6, dtype=DOUBLE)
    impulses[[0, 1], [0, 1], 0, 0] = 1
    y = layer(impulses)
    rows, columns = (
        (torch.arange(outputs) - before) % size
        for outputs, before, size in zip(y.shape[2:], padding, (n, m), strict=True)
    )
    assert torch.allclose(y, response[rows][:, columns].permute(3, 2, 0, 1), atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kernel", [4, (2, 3)])
def test_an_affine_of_even_size_counts_too(kernel):
    """It keeps the map by padding that is larger on one side."""
    torch.manual_seed(0)
    for mode in ("circular", "zeros"):
        geometry = {"padding_mode": mode, "dtype": DOUBLE}
        affine = nn.Conv2d(4, 4, kernel, padding="same", groups=4, **geometry)
        layer = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, **geometry), affine)
        composite = composite_of(layer, dtype=DOUBLE)
        assert composite.stages == ("conv", "affine")
        truth = dense_values(lambda x, layer=layer: layer(x), (2, 5, 6))
        assert truth[0] <= norm_bound(composite, (5, 6)) * (1 + 1e-12)
        if mode == "circular":
            assert_equal(singular_values(circular_symbol(composite, (5, 6)))[-1], truth)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_that_repeats_pixels_has_no_bound_here(mode):
    for layer in (
        nn.Conv2d(2, 2, 3, padding=1, padding_mode=mode),
        nn.Conv2d(2, 2, 3, padding=3, padding_mode="circular"),
    ):
        with pytest.raises(NoSymbol, match="repeats pixels"):
            norm_bound(composite_of(layer), (6, 6))


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 4)])
def test_gram_iteration_bounds_from_above_and_converges(shape, scale):
    """Powers of 64 of such numbers are no float32."""
    torch.manual_seed(0)
    A = scale * torch.randn(7, *shape, dtype=torch.complex64)
    truth = torch.linalg.matrix_norm(A, ord=2)
    for iterations, over in ((2, 1.4), (6, 1.02), (12, 1.001)):
        bounds = gram_bounds(A, iterations)
        assert (truth <= bounds).all()
        assert (bounds <= over * truth).all()
    assert (gram_bounds(torch.zeros(2, *shape)) == 0).all()
