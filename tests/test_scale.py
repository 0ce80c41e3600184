"""The constant factor of a normalizer: where it acts, where it does not, and that 1 is nothing."""

import copy

import pytest
import torch
from torch import nn

from classification.networks import build_network
from convnorm import CATALOGUE, ConvNorm2d, Normalizer
from convnorm.fixed import fixed_weights
from convnorm.operator_norm import UnitOperatorNorm
from convnorm.penalties import orthogonality
from gan.networks import build_discriminator

every_kind = pytest.mark.parametrize("kind", CATALOGUE)
# What divides a map by its own statistics takes the factor of the layer before away again.
HOMOGENEOUS = [
    kind for kind, each in CATALOGUE.items() if each.conv_scales or not each.normalizes_map
]
DIVIDES_MAPS = [kind for kind in CATALOGUE if kind not in HOMOGENEOUS]
LAYERS = 8  # of SNGAN's CNN, the head included


def discriminator(kind, **options):
    torch.manual_seed(0)
    normalize = Normalizer(kind, **options)
    arguments = {"image_size": 16, "channels": 3, "options": {"discriminator_width": 4}}
    return build_discriminator("sngan_cnn", normalize, **arguments).double()


def images(batch_size=3):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch_size, 3, 16, 16, generator=generator, dtype=torch.float64) * 2 - 1


def logits_and_gain(network):
    x = images().requires_grad_()
    y = network.eval()(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), gradient


@pytest.mark.parametrize(("scale", "factor"), [(1.2, 4.2998), (1.6, 42.950), (2.0, 256.0)])
@pytest.mark.parametrize("kind", HOMOGENEOUS)
def test_c_on_each_layer_is_c_to_their_number_on_the_logit(kind, scale, factor):
    """A layer left out, the head or the one at the image above all; a factor on a norm's vector."""
    one, other = (logits_and_gain(discriminator(kind, scale=c)) for c in (1.0, scale))
    for before, after in zip(one, other, strict=True):
        torch.testing.assert_close(after, scale**LAYERS * before, rtol=1e-5, atol=0)
    assert scale**LAYERS == pytest.approx(factor, rel=1e-4)


@pytest.mark.parametrize("multiplier", [False, True])
@pytest.mark.parametrize("kind", DIVIDES_MAPS)
def test_a_normalized_map_is_multiplied_and_so_are_the_layers_left_alone(kind, multiplier):
    normalize = {c: Normalizer(kind, multiplier=multiplier, scale=c) for c in (1.0, 3.0)}
    x = torch.randn(4, 6, 5, 5)
    for layer in (nn.Conv2d(6, 8, 3, bias=False), nn.Linear(5, 7, bias=False)):
        one, three = (n(copy.deepcopy(layer)).train() for n in normalize.values())
        torch.testing.assert_close(three(x), 3 * one(x))
    image = nn.Conv2d(6, 8, 3, bias=False)
    one, three = (n(copy.deepcopy(image), at_input=True) for n in normalize.values())
    torch.testing.assert_close(three(x), 3 * one(x))


@every_kind
@pytest.mark.parametrize("options", [{}, {"multiplier": True, "affine": True}])
def test_no_offset_is_multiplied(kind, options):
    """At an input of 0 there is nothing but offsets."""
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(5, 7)
    for layer, x in zip(plain, (torch.zeros(2, 3, 8, 8), torch.zeros(2, 5)), strict=True):
        both = [Normalizer(kind, scale=c, **options)(copy.deepcopy(layer)) for c in (1.0, 3.0)]
        if kind in DIVIDES_MAPS and isinstance(layer, nn.Conv2d):
            for one in both:  # its bias is normalized with the map, but the shift is its own
                for name, parameter in one.named_parameters():
                    if name.endswith("bias"):
                        nn.init.constant_(parameter, 0.0 if name.startswith("0.") else 0.7)
        one, three = (normalized.eval()(x) for normalized in both)
        torch.testing.assert_close(three, one)


@every_kind
def test_a_scale_of_one_adds_nothing(kind):
    """Modules, state and outputs are those of before there was a scale."""
    plain, one, two = (discriminator(kind, **o) for o in ({}, {"scale": 1.0}, {"scale": 2.0}))
    assert str(plain) == str(one)
    states = plain.state_dict(), one.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(map(torch.equal, states[0].values(), states[1].values()))
    assert not [m for m in plain.modules() if type(m).__name__ in ("Scale", "Factor")]
    numbers = [sum(p.numel() for p in network.parameters()) for network in (one, two)]
    assert numbers[0] == numbers[1]


@every_kind
def test_every_kind_reads_it(kind):
    assert "scale" in CATALOGUE[kind].reads


@every_kind
@pytest.mark.parametrize("options", [{}, {"multiplier": True, "affine": True, "batch_norm": True}])
def test_trains_under_a_gradient_penalty_and_reloads(kind, options):
    network = discriminator(kind, scale=1.3, **options).train()
    x = images().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    gradient.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())
    fresh = discriminator(kind, scale=1.3, **options)
    fresh.load_state_dict(copy.deepcopy(network.state_dict()), strict=True)
    for other in (copy.deepcopy(network), fresh):
        assert torch.equal(other.eval()(images()), network.eval()(images()))


@every_kind
def test_equal_outputs_where_weights_are_fixed(kind):
    network = discriminator(kind, scale=1.3).eval()
    expected = network(images())
    with fixed_weights(), torch.no_grad():
        for _ in range(2):
            assert torch.equal(network(images()), expected)


def test_the_penalty_on_kernels_does_not_see_it():
    """Scaled kernels have no reason to be of norm 1: the penalty would fight the scale."""
    for as_published in (False, True):
        one, two = (orthogonality(discriminator("ocnn", scale=c), as_published) for c in (1.0, 2.0))
        torch.testing.assert_close(two, one)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_layer_refuses_a_scale_that_is_none(scale):
    with pytest.raises(ValueError, match=r"^scale must be more than 0 and finite, not "):
        ConvNorm2d(3, 4, 3, scale=scale)


def test_the_scale_is_the_operator_norm_that_is_left():
    torch.manual_seed(0)
    layer = Normalizer("spectral_convnorm", scale=3.0)(nn.Conv2d(3, 6, 3, padding=1))
    assert isinstance(layer, UnitOperatorNorm)
    one = Normalizer("spectral_convnorm")(copy.deepcopy(nn.Conv2d(3, 6, 3, padding=1)))
    one.layer.load_state_dict(layer.layer.state_dict())
    one.u.copy_(layer.u)
    torch.testing.assert_close(layer.operator_norm(), 3 * one.operator_norm())


@pytest.mark.parametrize("multiplier", [False, True])
@pytest.mark.parametrize("kind", CATALOGUE)
def test_classifiers_alone_multiply_orthogonal_weights_by_sqrt_2(kind, multiplier):
    """Also where the product is beyond the range of the option."""
    gain = 2**0.5 if kind in ("oni", "own") else 1.0
    assert CATALOGUE[kind].relu_gain == gain
    assert Normalizer(kind).scale == 1.0
    for scale in (1.0, 1000.0):
        made = Normalizer(kind, scale=scale, multiplier=multiplier)
        assert made.for_relu().scale == scale * gain
        assert made.scale == scale
    if gain == 1.0:
        return
    torch.manual_seed(0)
    normalize = Normalizer(kind, multiplier=multiplier, iterations=12, scale=1.5)
    arguments = {"num_classes": 4, "channels": 1, "image_size": 8, "mean": [0.5], "std": [0.2]}
    network = build_network("simple_cnn", normalize, options={"width": 4}, **arguments)
    conv = network.features[2]
    norms = torch.linalg.svdvals(conv.weight.flatten(1))
    torch.testing.assert_close(norms, torch.full_like(norms, 1.5 * gain), rtol=0.01, atol=0)
    assert not network.head.linear.__dict__.get("parametrizations")
