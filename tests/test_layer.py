"""ConvNorm2d as a module: its bounds, its state, and what a training script does to it."""

import copy
import itertools
import math

import pytest
import reference
import torch
from torch import nn

from convnorm import ConvNorm2d, from_reference
from convnorm.functional import FEW_INPUTS, spectral_gain

every_grid = pytest.mark.parametrize("grid", ["full", "native"])


def bare(*args, **options):
    """The filter alone."""
    return ConvNorm2d(*args, **{"affine": False, "batch_norm": False, **options})


def circular(*args, **options):
    return bare(*args, padding_mode="circular", dtype=torch.float64, eps=0.0, **options)


def train_step(layer, size=8):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(2, layer.in_channels, size, size)).square().mean().backward()
    optimizer.step()


# The bounds, by dense matrices.


@every_grid
def test_operator_norm_is_between_its_bounds(grid):
    torch.manual_seed(0)
    for out_channels, in_channels, k in itertools.product((1, 3, 8), (1, 2, 5), (1, 3, 5)):
        layer = circular(in_channels, out_channels, k, padding=k // 2, grid=grid)
        sigma = reference.sigma_max(layer, (in_channels, 6, 5))
        lower = max(1.0, math.sqrt(out_channels / in_channels))
        assert lower * (1 - 1e-9) <= sigma <= math.sqrt(out_channels) * (1 + 1e-9)


@every_grid
def test_identical_channels_meet_the_upper_bound(grid):
    layer = circular(3, 5, 3, padding=1, grid=grid)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[:1].clone())
    assert reference.sigma_max(layer, (3, 6, 6)) == pytest.approx(math.sqrt(5))


# A drop-in convolution.


@every_grid
@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1},
        {"padding": "same"},
        {"padding": "valid", "stride": 2},
        {"padding": (1, 0), "stride": (2, 3), "dilation": (1, 2)},
        {"padding": 1, "groups": 2, "bias": True},
        {"kernel_size": (2, 4), "padding": "same", "dilation": 2},
        {"kernel_size": 4, "padding": 1, "stride": 2},
        {"padding": 3},
    ],
    ids=str,
)
def test_takes_the_options_of_a_convolution_and_returns_its_shape(grid, padding_mode, options):
    options = {"kernel_size": 3, **options, "padding_mode": padding_mode}
    if grid == "full" and padding_mode == "circular" and options.get("padding") == 3:
        with pytest.raises(ValueError, match="one turn of the ring"):
            ConvNorm2d(4, 6, grid=grid, **options)
        return
    x = torch.randn(2, 4, 9, 10)
    expected = nn.Conv2d(4, 6, **options)(x)
    layer = ConvNorm2d(4, 6, grid=grid, **options)
    assert layer(x).shape == expected.shape
    assert layer.eval()(x).shape == expected.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": "half"}, "grid must be one of .*'half'"),
        ({"affine_init": "eye"}, "affine_init must be one of .*'eye'"),
        ({"affine_mode": "ring"}, "affine_mode must be one of .*'ring'"),
        ({"filter": "fft"}, "filter must be one of .*'fft'"),
        ({"affine_size": 4, "affine_mode": "circular"}, r"odd affine_size, not \(4, 4\)"),
        ({"eps": -1.0}, "eps must be 0 or more, not -1"),
        ({"padding": 2, "padding_mode": "circular"}, "one turn of the ring"),
        ({"padding_mode": "mirror"}, "padding_mode must be one of"),
        ({"stride": 2, "padding": "same"}, "not supported for strided"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConvNorm2d(4, 4, 3, **options)


@every_grid
@pytest.mark.parametrize(("made", "later"), [((1, 1), (2, 2)), ("same", "same"), ((2, 1), "valid")])
def test_follows_a_dilation_and_a_padding_set_later(grid, made, later):
    """As ResNets are made to keep their resolution for segmentation."""
    torch.manual_seed(0)
    layer = ConvNorm2d(3, 4, (3, 2), padding=made, grid=grid).eval()
    layer.dilation, layer.padding = (2, 2), later
    fresh = ConvNorm2d(3, 4, (3, 2), padding=later, dilation=2, grid=grid).eval()
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 9, 8)
    assert layer(x).equal(fresh(x))
    assert layer.linear_adjoint(layer.linear(x), (9, 8)).shape == x.shape


def test_bias_comes_after_the_filter():
    layer = bare(2, 3, 3, bias=True)
    x = torch.randn(1, 2, 6, 6)
    with_bias = layer(x)
    offset, layer.bias = layer.bias, None
    torch.testing.assert_close(with_bias, layer(x) + offset[:, None, None])


def test_from_conv_shares_the_parameters():
    conv = nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, True, "replicate")
    layer = ConvNorm2d.from_conv(conv, grid="native")
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias
    assert layer.extra_repr().startswith(conv.extra_repr())


@pytest.mark.parametrize("kernel", [3, 4, (1, 2), 6])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_affine_keeps_the_map_and_starts_as_the_identity_when_dirac(kernel, padding_mode):
    """An even affine kernel, which would shrink the map or shift it by half a pixel."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 9)
    options = {"grid": "native", "padding_mode": padding_mode, "batch_norm": False}
    layer = ConvNorm2d(3, 4, kernel, affine_init="dirac", **options)
    without = bare(3, 4, kernel, **options)
    without.weight = layer.weight
    torch.testing.assert_close(layer(x), without(x))
    assert ConvNorm2d(3, 4, kernel, **options)(x).shape == without(x).shape


@every_grid
@pytest.mark.parametrize(("kernel", "affine"), [(3, 3), (1, 1), (1, 3), (3, 5)])
def test_on_circular_maps_an_affine_is_the_same_in_both_modes(grid, kernel, affine):
    """With a bias before it, whose map the affine filters too."""
    torch.manual_seed(0)
    options = {"padding": kernel // 2, "bias": True, "padding_mode": "circular", "grid": grid}
    layers = [
        ConvNorm2d(3, 4, kernel, **options, affine_mode=mode, affine_size=affine).double()
        for mode in ("same", "circular")
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(layers[0](x), layers[1](x))
    torch.testing.assert_close(layers[0].linear(x), layers[1].linear(x))
    y = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    adjoints = [layer.linear_adjoint(y, (6, 5)) for layer in layers]
    torch.testing.assert_close(*adjoints)


@every_grid
def test_circular_layer_commutes_with_shifts(grid):
    """An affine that pads with zeros where the layer is on a ring."""
    torch.manual_seed(0)
    layer = ConvNorm2d(2, 3, 3, padding=1, padding_mode="circular", grid=grid)
    x = torch.randn(2, 2, 6, 7)
    torch.testing.assert_close(layer(x.roll((2, 3), (2, 3))), layer(x).roll((2, 3), (2, 3)))


# State: the parameters alone.


@every_grid
def test_gain_follows_every_change_of_the_weight(grid):
    """A stale gain is a wrong result; writes through `.data` leave no trace."""
    torch.manual_seed(0)
    layer, x = bare(3, 4, 3, padding=1, grid=grid), torch.randn(2, 3, 8, 8)

    def check():
        fresh = bare(3, 4, 3, padding=1, grid=grid)
        fresh.weight = nn.Parameter(layer.weight.detach().clone())
        assert torch.equal(layer(x), fresh(x))

    before = layer.eval()(x)
    layer.weight.data.mul_(3.0)
    torch.testing.assert_close(layer(x), before)
    layer.weight.data[0].zero_()
    assert not layer(x)[:, 0].any()
    for mode in (True, False):
        train_step(layer.train(mode))
        check()
    layer.load_state_dict(bare(3, 4, 3, padding=1, grid=grid).state_dict())
    check()
    assert not torch.equal(layer(x), before)


@every_grid
def test_state_of_a_used_layer_loads_into_a_fresh_one_and_any_size_runs(grid):
    """Buffers that take the size of the first map."""
    torch.manual_seed(0)
    layer = ConvNorm2d(3, 4, 3, stride=2, padding=1, grid=grid)
    keys = set(layer.state_dict())
    train_step(layer, 9)
    fresh = ConvNorm2d(3, 4, 3, stride=2, padding=1, grid=grid)
    fresh.load_state_dict(layer.state_dict(), strict=True)
    assert set(layer.state_dict()) == keys
    assert not {key for key in keys if not key.startswith(("weight", "affine.", "batch_norm."))}
    for size in (9, 8, 16):
        x = torch.randn(2, 3, size, size)
        assert torch.equal(layer.eval()(x), fresh.eval()(x))


def test_training_and_evaluation_agree_without_batch_norm():
    layer, x = ConvNorm2d(3, 4, 3, batch_norm=False), torch.randn(2, 3, 8, 8)
    assert torch.equal(layer.train()(x), layer.eval()(x))


def test_deepcopy_of_a_used_layer_is_its_own():
    layer, x = ConvNorm2d(3, 4, 3, batch_norm=False), torch.randn(2, 3, 8, 8)
    before = layer(x).detach()
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), before)
    train_step(twin)
    assert torch.equal(layer(x), before)
    assert not torch.equal(twin(x), before)


def test_reads_a_reference_checkpoint_with_the_bias_before_the_filter():
    """The reference's bias is filtered too: its gain at frequency zero moves into ours."""
    torch.manual_seed(0)
    layer = ConvNorm2d(3, 4, 3, padding=1, bias=True, eps=0.0)
    state = layer.state_dict()
    old = {
        f"features.{key.replace('affine.', 'bpconv.')}": torch.randn_like(value.float())
        for key, value in state.items()
        if not key.endswith(("num_batches_tracked", "running_var"))
    }
    old["features.batch_norm.running_var"] = torch.rand(4) + 0.5
    old["features.batch_norm.num_batches_tracked"] = torch.tensor(3)
    old |= {"features.running_V": torch.ones(4, 10, 6), "fc.weight": torch.ones(2, 2)}
    old["fc.bias"] = torch.ones(2)
    new = from_reference(old)
    assert torch.equal(new["fc.bias"], old["fc.bias"])
    layer.load_state_dict({k.removeprefix("features."): v for k, v in new.items() if "fc" not in k})

    x, weight = torch.randn(2, 3, 8, 8), old["features.weight"]
    c = nn.functional.conv2d(x, weight, old["features.bias"], padding=2)
    y = torch.fft.irfft2(torch.fft.rfft2(c) * spectral_gain(weight, (10, 10), eps=0.0), s=(10, 10))
    expected = layer.eval().batch_norm(layer.affine(y[..., 1:-1, 1:-1]))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


# What training scripts switch on.


@every_grid
@pytest.mark.parametrize("size", [2, 16])
def test_autocast_is_close_to_float32_and_no_transform_sees_half(monkeypatch, grid, size):
    """A bfloat16 energy or transform; an output that leaves the precision autocast chose."""
    torch.manual_seed(0)
    inputs = FEW_INPUTS + 1  # fewer have gains in float64
    layer, x = bare(inputs, 8, 3, padding=1, grid=grid), torch.randn(4, inputs, size, size)
    expected = layer(x)
    computed = []
    for module, name in ((torch.fft, "rfft2"), (torch.fft, "irfft2"), (torch, "bmm")):
        function = getattr(module, name)

        def recording(*args, function=function, **kwargs):
            computed.append(function(*args, **kwargs))
            return computed[-1]

        monkeypatch.setattr(module, name, recording)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == nn.Conv2d(inputs, 8, 1)(x).dtype
    y.float().square().sum().backward()
    assert {t.dtype for t in computed} <= {torch.float32, torch.complex64}
    assert layer.weight.grad.dtype == torch.float32
    assert (y.float() - expected).norm() < 0.01 * expected.norm()


@every_grid
@pytest.mark.parametrize("size", [2, 16])
def test_module_in_bfloat16(grid, size):
    layer = ConvNorm2d(4, 4, 3, padding=1, grid=grid)
    x = torch.randn(2, 4, size, size)
    expected = layer(x)
    y = layer.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).norm() < 0.03 * expected.norm()


@every_grid
@pytest.mark.parametrize("size", [3, 16])
def test_memory_format_changes_nothing(grid, size):
    torch.manual_seed(0)
    layer = ConvNorm2d(4, 4, 3, stride=2, padding=1, grid=grid)
    x = torch.randn(2, 4, size, size)
    expected = layer(x)
    layer = layer.to(memory_format=torch.channels_last)
    y = layer(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected)


# Dynamo's own way to trace an autograd.Function.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@every_grid
def test_compiles_as_one_graph(grid):
    """Values and gradients of two layers with different tables; a graph break raises."""
    torch.manual_seed(0)
    layer = nn.Sequential(
        ConvNorm2d(3, 4, 3, padding=1, grid=grid),
        ConvNorm2d(4, 4, 4, stride=2, padding=1, grid=grid, gradient_through_gain=True),
    )
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for size in (8, 32):
        x = torch.randn(2, 3, size, size)
        results = []
        for run in (layer, compiled):
            layer.zero_grad()
            y = run(x)
            y.square().sum().backward()
            results.append((y.detach(), [p.grad for p in layer.parameters()]))
        torch.testing.assert_close(results[1], results[0])
