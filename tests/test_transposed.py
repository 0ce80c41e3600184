"""ConvNormTranspose2d: its guarantee by dense matrices, and where an nn.ConvTranspose2d stands."""

import copy
import itertools
import math

import pytest
import reference
import torch
from torch import nn

from convnorm import ConvNorm2d, fixed
from convnorm.fixed import fixed_weights, shared_weights
from convnorm.functional import spectral_gain
from convnorm.transposed import ConvNormTranspose2d, conv_norm_transpose2d

# in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation
RINGS = {
    "stride 1": (4, 3, 3, 1, 1, 0, 1, False, 1),
    "stride 2": (4, 3, 4, 2, 1, 0, 1, False, 1),
    "an output padding": (6, 1, 3, 2, 1, 1, 1, False, 1),
    "stride 3": (2, 4, 3, 3, 0, 0, 1, False, 1),
    "stride 3, overlapping": (3, 2, 5, 3, 1, 0, 1, False, 1),
    "two strides": (3, 2, (3, 4), (1, 2), 1, 0, 1, False, 1),
    "groups": (4, 2, 4, 2, 1, 0, 2, False, 1),
    "depthwise": (4, 4, 3, 1, 1, 0, 4, False, 1),
    "dilation": (4, 6, 3, 1, 2, 0, 2, False, 2),
    "dilation and stride": (3, 2, 2, 2, 1, 1, 1, False, 2),
    "pointwise": (5, 2, 1, 1, 0, 0, 1, False, 1),
    "larger than the ring": (3, 2, 9, 1, 4, 0, 1, False, 1),
}
SIZE = (4, 5)
every_ring = pytest.mark.parametrize("geometry", RINGS.values(), ids=RINGS)


def bare(*geometry, **options):
    """The filter alone, in float64."""
    torch.manual_seed(0)
    options = {"affine": False, "batch_norm": False, "dtype": torch.float64, **options}
    return ConvNormTranspose2d(*geometry, **options)


def circular(*geometry):
    return bare(*geometry, padding_mode="circular", eps=0.0)


def twin_of(layer):
    """The ConvNorm2d whose adjoint a layer is."""
    twin = ConvNorm2d(
        layer.out_channels,
        layer.in_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        padding_mode=layer.padding_mode,
        dtype=torch.float64,
        grid="native",
        affine=False,
        batch_norm=False,
        eps=layer.eps,
    )
    twin.weight = layer.weight
    return twin


# The guarantee.


@every_ring
def test_each_input_channel_is_an_isometry_on_a_ring(geometry):
    layer = circular(*geometry)
    B = reference.dense(layer, (layer.in_channels, *SIZE)).flatten(0, 1)
    identity = torch.eye(math.prod(SIZE), dtype=torch.float64)
    for B_i in B.unflatten(1, (layer.in_channels, -1)).unbind(1):
        torch.testing.assert_close(B_i.T @ B_i, identity, rtol=0, atol=1e-12)
    inputs, outputs = (n // layer.groups for n in (layer.in_channels, layer.out_channels))
    sigma = torch.linalg.matrix_norm(B, ord=2).item()
    lower = max(1, math.sqrt(inputs / (math.prod(layer.stride) * outputs)))
    assert lower * (1 - 1e-12) <= sigma <= math.sqrt(inputs) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("geometry", "mode"),
    [
        *((RINGS[name], "circular") for name in RINGS if name != "larger than the ring"),
        ((4, 3, 4, 2, 1), "zeros"),
        ((4, 6, 3, 1, 1, 0, 2, False, 2), "zeros"),
    ],
)
def test_it_is_the_adjoint_of_convnorm_on_the_native_grid(geometry, mode):
    layer = bare(*geometry, padding_mode=mode)
    twin = twin_of(layer)
    x = torch.randn(2, layer.in_channels, *SIZE, dtype=torch.float64)
    Bx = layer(x)
    y = torch.randn_like(Bx)
    torch.testing.assert_close((Bx * y).sum(), (x * twin(y)).sum(), rtol=1e-12, atol=0)


def test_a_crop_of_the_ring_keeps_the_bound_and_zero_padding_does_not():
    """A kernel whose spectrum vanishes at a frequency: the docstring's promise ends there."""
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    found = {}
    for padding in (0, 1, 2):
        layer = bare(1, 1, 3, padding=padding)
        with torch.no_grad():
            layer.weight.copy_(laplacian)
        found[padding] = reference.sigma_max(layer, (1, 6, 6))
    assert min(found[0], found[1]) > 50
    assert found[2] <= 1 + 1e-12


# Where an nn.ConvTranspose2d stands.


@pytest.mark.parametrize("bias", [False, True])
def test_output_sizes_are_those_of_torch(bias):
    for kernel, stride, padding, dilation, size in itertools.product(
        (1, 2, (3, 4)), (1, 2, (3, 2)), (0, 1), (1, 2), ((3, 3), (6, 5))
    ):
        geometry = (4, 6, kernel, stride, padding, 0, 2, bias, dilation)
        x = torch.randn(2, 4, *size)
        layer = ConvNormTranspose2d(*geometry)
        plain = nn.ConvTranspose2d(*geometry)
        try:
            expected = plain(x).shape
        except RuntimeError:  # no pixel would be left
            with pytest.raises(ValueError, match="expected 1 or more"):
                layer(x)
            continue
        assert layer(x).shape == expected, geometry
        assert layer.eval()(x[0]).shape == expected[1:]
        assert layer(x[:0]).shape == (0, *expected[1:])
        assert layer.weight.shape == plain.weight.shape


@pytest.mark.parametrize(
    ("geometry", "output_size"),
    [((3, 3, 2, 1), None), ((4, 2, 1), [10, 11]), ((4, 2, 1), (2, 4, 11, 10))],
)
def test_output_padding_and_output_size_are_those_of_torch(geometry, output_size):
    x = torch.randn(2, 3, 5, 5)
    layer, plain = (kind(3, 4, *geometry) for kind in (ConvNormTranspose2d, nn.ConvTranspose2d))
    assert layer(x, output_size=output_size).shape == plain(x, output_size=output_size).shape


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_order_of_filter_scale_bias_affine_and_batch_norm(mode):
    layer = ConvNormTranspose2d(
        3, 4, 4, 2, 1, bias=True, padding_mode=mode, dtype=torch.float64, scale=3.0
    )
    x = torch.randn(5, 3, *SIZE, dtype=torch.float64)
    gain = reference.gain(layer.weight.detach(), SIZE, (1, 1), (2, 2), layer.eps)
    filtered = torch.fft.ifft2(gain * torch.fft.fft2(x)).real
    if mode == "zeros":
        y = nn.functional.conv_transpose2d(filtered, layer.weight, None, 2, 1)
    else:  # three copies of the map side by side, the middle one of which has no edge
        y = nn.functional.conv_transpose2d(filtered.tile(3, 3), layer.weight, None, 2, 1)
        y = y[:, :, 8:16, 10:20]
    y = layer.batch_norm(layer.affine(3.0 * y + layer.bias[:, None, None]))
    torch.testing.assert_close(layer(x), y)


def test_a_dirac_affine_starts_as_the_identity():
    layer = ConvNormTranspose2d(3, 4, 4, 2, 1, affine_init="dirac", batch_norm=False)
    x = torch.randn(2, 3, 4, 4)
    expected = conv_norm_transpose2d(x, layer.weight, (2, 2), (1, 1))
    torch.testing.assert_close(layer(x), expected)
    assert layer.affine.kernel_size == (3, 3)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("through_gain", [False, True])
def test_gradients_of_both_orders(mode, kernel, through_gain):
    geometry = ((1, 1), (kernel // 2,) * 2, (0, 0), 1, (1, 1), mode)
    weight = bare(2, 1, kernel).weight.detach().requires_grad_(through_gain)
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)

    def layer(x, weight):
        options = {"gradient_through_gain": through_gain, "eps": 1e-3}
        return conv_norm_transpose2d(x, weight, *geometry, **options)

    assert torch.autograd.gradcheck(layer, (x, weight))
    assert torch.autograd.gradgradcheck(layer, (x, weight))


def test_no_gradient_through_the_gain_unless_asked():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    layer, constant = bare(3, 2, 4, 2, 1), bare(3, 2, 4, 2, 1)
    gain = spectral_gain(constant.weight.detach(), (4, 4), (1, 1), (2, 2))
    filtered = torch.fft.irfft2(gain * torch.fft.rfft2(x), s=(4, 4))
    layer(x).sin().sum().backward()
    nn.functional.conv_transpose2d(filtered, constant.weight, None, 2, 1).sin().sum().backward()
    torch.testing.assert_close(layer.weight.grad, constant.weight.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_half_precision_reaches_no_filter(dtype, mode):
    """An FFT refuses it on a CPU, and a gain of it would be off by 1 %."""
    layer = ConvNormTranspose2d(8, 4, 4, 2, 1, padding_mode=mode, batch_norm=False)
    x = torch.randn(2, 8, 16, 16)
    expected = layer(x)
    with torch.autocast("cpu", dtype):
        y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=0.1)
    y = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=0.1)


def test_gains_are_computed_once_where_weights_stand_still(monkeypatch):
    layer, x = bare(3, 2, 4, 2, 1), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected, made = layer(x), []
    from convnorm import transposed

    def counted(*args):
        made.append(args)
        return spectral_gain(args[0].detach(), *args[1:])

    monkeypatch.setattr(transposed, "constant_gain", counted)
    with shared_weights():
        assert torch.equal(layer(x), expected)
        layer(x).sum().backward()
    assert len(made) == 1
    layer.requires_grad_(False)
    with fixed_weights():
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x), expected)
    assert len(made) == 2
    layer.weight.mul_(-2)
    torch.testing.assert_close(layer(x), -expected)  # a gain of before would double it
    assert fixed._results.get() is None


def test_state_of_any_size_loads_and_is_that_of_the_parameters():
    used = ConvNormTranspose2d(3, 4, 4, 2, 1)
    for size in ((4, 4), (7, 5)):
        used(torch.randn(2, 3, *size))
    fresh = ConvNormTranspose2d(3, 4, 4, 2, 1)
    fresh.load_state_dict(used.state_dict())
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(fresh.eval()(x), used.eval()(x))


def test_channels_last_is_kept():
    layer = bare(3, 4, 4, 2, 1, dtype=torch.float32)
    x = torch.randn(2, 3, 6, 6)
    y = layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x))


def test_meta_has_the_shape():
    with torch.device("meta"):
        layer = ConvNormTranspose2d(3, 4, 4, 2, 1)
        assert layer(torch.zeros(2, 3, 6, 6)).shape == (2, 4, 12, 12)


# from_conv.


def test_from_conv_takes_parameters_geometry_and_mode():
    conv = nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=1).eval()
    conv.weight.requires_grad_(False)
    layer = ConvNormTranspose2d.from_conv(conv, batch_norm=False)
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert not layer.training
    assert not layer.affine.weight.requires_grad
    x = torch.randn(2, 4, 5, 5)
    assert layer(x).shape == conv(x).shape


class Own(nn.ConvTranspose2d):
    def forward(self, x, output_size=None):
        return super().forward(x)[..., :-1]


def hooked():
    conv = nn.ConvTranspose2d(2, 3, 3)
    conv.register_forward_hook(lambda *_: None)
    return conv


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Conv2d(2, 3, 3), TypeError, "expected an nn.ConvTranspose2d, not a Conv2d"),
        (lambda: nn.ConvTranspose1d(2, 3, 3), TypeError, "not a ConvTranspose1d"),
        (lambda: ConvNormTranspose2d(2, 3, 3), TypeError, "a way of its own .forward., and not as"),
        (lambda: Own(2, 3, 3), TypeError, "Own computes .* not as nn.ConvTranspose2d does"),
        (lambda: nn.LazyConvTranspose2d(3, 3), TypeError, "no weight yet"),
        (
            lambda: nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(2, 3, 3)),
            TypeError,
            "normalize first",
        ),
        (hooked, ValueError, "has hooks"),
    ],
)
def test_from_conv_refuses_what_is_no_plain_transposed_convolution(make, error, message):
    with pytest.raises(error, match=message):
        ConvNormTranspose2d.from_conv(make())


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding_mode": "reflect"}, "padding_mode must be one of .* not 'reflect'"),
        ({"affine_init": "zero"}, "affine_init must be one of .* not 'zero'"),
        ({"eps": -1.0}, "eps must be 0 or more, not -1"),
        ({"scale": 0.0}, "scale must be more than 0"),
        (
            {"padding_mode": "circular", "padding": 0},
            r"of stride times .*\(2, 2\) pixels more",
        ),
        ({"padding_mode": "circular", "output_padding": 1}, r"\(1, 1\) pixels more"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConvNormTranspose2d(2, 3, 4, 2, **{"padding": 1, **options})


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((3, 3), r"must be \(N, I, H, W\) or \(I, H, W\), not \(3, 3\)"),
        ((1, 1, 2, 3, 3), r"not \(1, 1, 2, 3, 3\)"),
        ((1, 3, 4, 4), "3 channels; expected 2"),
        ((1, 2, 0, 4), r"\(0, 4\) pixels"),
    ],
)
@pytest.mark.parametrize("kernel", [1, 4])
def test_inputs_that_cannot_be_are_refused(size, message, kernel):
    layer = ConvNormTranspose2d(2, 3, kernel, batch_norm=False, affine=False)
    with pytest.raises(ValueError, match=message):
        conv_norm_transpose2d(torch.zeros(size), layer.weight)


def test_an_output_size_that_is_no_turn_of_the_ring_is_refused():
    layer = ConvNormTranspose2d(2, 3, 4, 2, 1, padding_mode="circular")
    assert layer(torch.zeros(2, 2, 4, 4), output_size=[8, 8]).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="stride times the input"):
        layer(torch.zeros(2, 2, 4, 4), output_size=[9, 8])


def test_complex_numbers_are_refused():
    with pytest.raises(TypeError, match="real numbers"):
        ConvNormTranspose2d(2, 3, 4, dtype=torch.complex64)
    with pytest.raises(TypeError, match="real numbers"):
        bare(2, 3, 4)(torch.zeros(1, 2, 4, 4, dtype=torch.complex64))
