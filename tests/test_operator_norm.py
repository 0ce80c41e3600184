"""The operator norm of a convolution as a parametrization, and kinds fitted to their maps."""

import copy
from dataclasses import replace

import pytest
import reference
import torch
import torch.nn.functional as F
from runs import tiny, tiny_classifier
from torch import nn

import classification.models
import gan.models
from convnorm import CATALOGUE, Normalizer
from convnorm.normalizers import fit_to_maps, normalized_layers
from convnorm.operator_norm import OperatorNorm
from convnorm.spectrum import layer_norms

FITTED = [kind for kind, definition in CATALOGUE.items() if definition.fit is not None]
every_fitted_kind = pytest.mark.parametrize("kind", FITTED)
SIZE = (7, 6)
# (kernel_size, other options) of convolutions of 4 channels.
GEOMETRIES = [
    (1, {}),
    (1, {"stride": 2}),
    (3, {"padding": 1}),
    (3, {"padding": 1, "stride": 2}),
    (4, {"padding": 1, "stride": 2}),
    ((5, 3), {"padding": "same"}),
    (4, {"padding": "same", "padding_mode": "replicate"}),
    (3, {"padding": (0, 2), "stride": (1, 3)}),
    (3, {"padding": 2, "dilation": 2, "stride": 2}),
    (3, {"padding": 1, "groups": 2}),
    (3, {"padding": 1, "groups": 4, "stride": 2}),
    (3, {"padding": 1, "padding_mode": "circular"}),
    (4, {"padding": 1, "padding_mode": "circular", "stride": 2, "groups": 2}),
    (3, {"padding": 2, "padding_mode": "reflect", "dilation": 2}),
]
every_geometry = pytest.mark.parametrize(("kernel", "options"), GEOMETRIES, ids=str)


def fitted(conv, kind="operator", steps=100, **options):
    """The normalized layer at `SIZE`, with its power iteration at its end, in evaluation mode."""
    layer = Normalizer(kind, **options)(conv)
    x = torch.zeros(1, conv.in_channels, *SIZE, dtype=conv.weight.dtype)
    fit_to_maps(layer, x)
    for _ in range(steps):
        layer.train()(x)
    return layer.eval()


def convolution(kernel=3, channels=(4, 6), dtype=torch.float64, **options):
    torch.manual_seed(0)
    if "groups" in options:
        channels = (4, 8)
    return nn.Conv2d(*channels, kernel, dtype=dtype, **options)


@every_geometry
def test_the_adjoint_is_the_adjoint(kernel, options):
    """Against products of random maps, for all that a convolution can be."""
    conv = convolution(kernel, **options)
    norm = OperatorNorm(conv)
    norm.fit(conv.weight, torch.Size(SIZE))
    u = torch.randn(1, 4, *SIZE, dtype=torch.float64)
    image = norm._convolution(u, conv.weight)
    torch.testing.assert_close(image, conv(u) - conv(torch.zeros_like(u)))
    y = torch.randn_like(image)
    products = (image * y).sum(), (u * norm._adjoint(y, conv.weight)).sum()
    torch.testing.assert_close(*products)


@every_geometry
def test_the_dense_matrix_of_the_layer_has_norm_one(kernel, options):
    """And the bias is what it was."""
    conv = convolution(kernel, **options)
    expected = reference.sigma_max(conv, (4, *SIZE))
    weight, bias = conv.weight.detach().clone(), conv.bias.detach().clone()
    layer = fitted(conv, steps=1000)
    assert reference.sigma_max(layer, (4, *SIZE)) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(layer.weight, weight / expected, rtol=1e-4, atol=1e-6)
    zero = torch.zeros(1, 4, *SIZE, dtype=torch.float64)
    torch.testing.assert_close(layer(zero), bias[:, None, None].expand_as(layer(zero)[0])[None])


def test_a_delta_is_left_alone_and_a_factor_taken_away():
    delta = convolution(channels=(4, 4), padding=1, bias=False)
    nn.init.dirac_(delta.weight)
    expected = delta.weight.detach().clone()
    torch.testing.assert_close(fitted(delta).weight, expected)
    one, other = convolution(padding=1), convolution(padding=1)
    with torch.no_grad():
        other.weight.mul_(5)
    torch.testing.assert_close(fitted(one).weight, fitted(other).weight)


def test_a_weight_of_zeros_stays_finite_and_comes_back():
    """A vector that became 0 would stay 0, and the weight be divided by nothing."""
    conv = convolution(padding=1)
    weight = conv.weight.detach().clone()
    nn.init.zeros_(conv.weight)
    layer = fitted(conv, steps=2)
    assert not layer.weight.any()
    with torch.no_grad():
        layer.parametrizations.weight.original.copy_(weight)
    for _ in range(50):
        layer.train().weight  # noqa: B018
    assert reference.sigma_max(layer.eval(), (4, *SIZE)) == pytest.approx(1, abs=1e-3)


def test_gradients_are_those_of_the_dense_matrix():
    """Without the part through the norm, the radial part of a gradient stays."""
    conv = convolution(padding=1, stride=2, bias=False)
    twin, layer = copy.deepcopy(conv), fitted(conv, steps=400)
    x = torch.randn(2, 4, *SIZE, dtype=torch.float64)
    layer(x).sin().sum().backward()

    def dense_norm(weight):
        eye = torch.eye(4 * SIZE[0] * SIZE[1], dtype=torch.float64).view(-1, 4, *SIZE)
        return torch.linalg.matrix_norm(F.conv2d(eye, weight, None, 2, 1).flatten(1), 2)

    weight = twin.weight / dense_norm(twin.weight)
    F.conv2d(x, weight, None, 2, 1).sin().sum().backward()
    torch.testing.assert_close(
        layer.parametrizations.weight.original.grad, twin.weight.grad, rtol=1e-4, atol=1e-6
    )
    radial = (twin.weight.grad * twin.weight).sum() / twin.weight.grad.norm() / twin.weight.norm()
    assert abs(radial) < 1e-4


def test_its_forward_pass_needs_no_autograd():
    """A power iteration by autograd fails in inference mode, and holds a graph of the layer."""
    layer = fitted(convolution(padding=1, dtype=torch.float32)).train()
    x = torch.zeros(1, 4, *SIZE)
    before = layer.parametrizations.weight[0].parametrization.u.clone()
    with torch.no_grad():
        layer.parametrizations.weight.original.add_(0.1)
        with torch.autograd.graph.saved_tensors_hooks(pytest.fail, pytest.fail):
            layer(x)
    assert not torch.equal(layer.parametrizations.weight[0].parametrization.u, before)


# Fitting


def built(kind, pipeline="gan", **changes):
    changes = {"normalizer.kind": kind, **changes}
    if pipeline == "gan":
        return gan.models.build(tiny(changes), 1)[1], (1, 16, 16)
    return classification.models.build(tiny_classifier(changes), 10, (0.5,), (0.2,)), (1, 8, 8)


@every_fitted_kind
@pytest.mark.parametrize("pipeline", ["gan", "classification"])
def test_each_layer_of_a_built_network_has_norm_one_at_its_own_map(kind, pipeline):
    """An iteration is never too large, so the norm that is left is 1 or more; unfitted, it is less.

    The warm-up leaves it within some percent, and the first passes of training within a few
    thousandths.
    """
    network, size = built(kind, pipeline, **{"normalizer.batch_norm": False})
    for passes, most in ((0, 1.05), (60, 1.005)):
        with torch.no_grad():
            for _ in range(passes):
                network.train()(torch.zeros(1, *size))
        norms = [each.operator_norm for each in layer_norms(network, torch.Size(size)).values()]
        assert len(norms) >= 2
        assert all(1 - 1e-5 <= norm <= most for norm in norms), norms


@every_fitted_kind
def test_a_fitted_state_goes_into_a_network_that_is_built_again(kind):
    (one, size), (other, _) = built(kind), built(kind, seed=1)
    x = torch.rand(3, *size)
    for _ in range(3):
        one(x)
    other.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(one.eval()(x), other.eval()(x))
    again, _ = built(kind)
    expected, _ = built(kind)
    assert all(map(torch.equal, again.state_dict().values(), expected.state_dict().values()))


@every_fitted_kind
@pytest.mark.parametrize("arch", ["dcgan", "sngan_resnet"])
def test_fitting_changes_nothing_but_what_it_fits(kind, arch):
    """Random numbers drawn, a mode left behind, batch statistics moved."""
    torch.manual_seed(0)
    normalize = Normalizer(kind, batch_norm=True)
    arguments = {"image_size": 16, "channels": 1, "options": {"discriminator_width": 4}}
    network = gan.models.build_discriminator(arch, normalize, **arguments).train()
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    fit_to_maps(network, torch.zeros(1, 1, 16, 16))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert not [m for m in network.modules() if m._forward_pre_hooks]
    changed = {
        name
        for name, value in network.state_dict().items()
        if not (value.shape == before[name].shape and torch.equal(value, before[name]))
    }
    assert changed
    assert all(name.rpartition(".")[2] == "u" for name in changed)


def test_fit_tells_each_layer_the_size_of_its_input(monkeypatch):
    seen = []
    kind = replace(CATALOGUE["none"], fit=lambda layer, size: seen.append(tuple(size)))
    monkeypatch.setitem(CATALOGUE, "fits", kind)
    network, _ = built("fits")
    assert seen == [(1, 1, 16, 16), (1, 4, 8, 8), (1, 128)]
    assert len(list(normalized_layers(network))) == len(seen)


def test_a_network_without_such_layers_is_not_run():
    (network, _), seen = built("spectral"), []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    fit_to_maps(network, torch.zeros(1, 1, 16, 16))
    assert not seen
