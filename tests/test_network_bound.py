"""Bounds of networks by hand, and measured Jacobians below them."""

import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torchvision.models import resnet18

from classification.networks import build_network
from convnorm import Normalizer, network_bound
from convnorm.composite import composite_of
from convnorm.gram import norm_bound
from convnorm.jacobian import jacobian_norms
from convnorm.network_bound import NoBound
from gan.networks import build_discriminator

DOUBLE = torch.float64


class Same(nn.Conv2d):
    def forward(self, x):
        return super().forward(x.abs())


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(4)
    nn.init.uniform_(bn.weight, -2, 2)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        bn,
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).double()


def test_the_bound_of_a_chain_is_the_product_of_its_layers():
    network = chain()
    found = network_bound.network_bound(network, torch.zeros(1, 2, 6, 6, dtype=DOUBLE))
    together = composite_of(network[0], network[1].eval(), DOUBLE)
    head = torch.linalg.matrix_norm(network[5].weight, ord=2).item()
    assert found == pytest.approx(norm_bound(together, (6, 6)) / 2 * head, rel=1e-9)


class Ways(nn.Module):
    """Branches and skips of maps (N, 2, 4, 4), by 1x1 convolutions that multiply by 3 and 4."""

    def __init__(self, forward):
        super().__init__()
        self.three, self.four = (nn.Conv2d(2, 2, 1, bias=False) for _ in range(2))
        for conv, factor in ((self.three, 3.0), (self.four, 4.0)):
            nn.init.dirac_(conv.weight)
            conv.weight.data *= factor
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        divided = {"divisor_override": 1}, {"divisor_override": 8, "stride": 1}
        self.pools = nn.ModuleList(nn.AvgPool2d(2, **options) for options in ({}, *divided))
        self.register_buffer("std", torch.tensor([0.5, 0.25])[:, None, None])
        self.way = forward

    def forward(self, x, labels=None):
        return self.way(self, x)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (lambda n, x: n.three(x) + x, 4),
        (lambda n, x: n.four(n.three(x).relu()) + n.three(x), 15),
        (lambda n, x: torch.cat([n.three(x), n.four(x)], 1), 5),
        (lambda n, x: n.pool(n.three(x)), 3 * 2),
        (lambda n, x: n.pools[0](n.three(x)), 3 / 2),
        (lambda n, x: n.pools[1](n.three(x)), 3 * 2),
        (lambda n, x: n.pools[2](n.three(x)), 3 / 8 * 4),
        (lambda n, x: (n.three(x) - 7.0) / n.std, 12),
        (lambda n, x: torch.maximum(n.three(x), n.std), 3),
        (lambda n, x: torch.maximum(n.three(x), n.four(x)), 5),
        (lambda n, x: n.three(x).sum(dim=(2, 3)), 12),
        (lambda n, x: n.three(x).mean((2, 3)), 0.75),
        (lambda n, x: torch.flatten(n.three(x).view(x.size(0), -1), 1), 3),
        (lambda n, x: n.std.expand(2, 4, 4) * 2, 0),
    ],
)
def test_branches_add_and_concatenations_take_a_root(way, expected):
    found = network_bound.network_bound(Ways(way), torch.rand(1, 2, 4, 4))
    assert expected <= found <= 1.005 * expected  # Gram iteration leaves 2^(1 / 512) a convolution


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        (lambda n, x: nn.functional.gelu(x), "gelu has no bound here"),
        (lambda n, x: x * x, "mul has no bound here"),
        (lambda n, x: x + x.mean((2, 3), keepdim=True), "add has no bound here"),
        (lambda n, x: 1 / x, "truediv has no bound here"),
        (lambda n, x: n.three(x) if x.sum() > 0 else x, "Ways cannot be traced"),
        (lambda n, x: (n.three(x), x), "more than one tensor"),
        (lambda n, x: n.three(x)[0], "getitem has no bound here"),
        (lambda n, x: n.three(n.pool(n.three(x))), "three: runs on maps of 2 sizes"),
    ],
)
def test_what_is_not_known_of_a_network_is_refused_by_name(way, reason):
    with pytest.raises(NoBound, match=reason):
        network_bound.network_bound(Ways(way), torch.rand(1, 2, 4, 4))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.GroupNorm(1, 2), "GroupNorm has no bound here"),
        (nn.Softmax(1), "Softmax has no bound here"),
        (nn.ConvTranspose2d(2, 2, 3), "ConvTranspose2d has no bound here"),
        (Same(2, 2, 3), "Same has a forward of its own"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "repeats pixels"),
        (nn.AdaptiveAvgPool2d(3), "overlaps"),
        (nn.MaxPool2d(2, dilation=2), "dilation"),
        (nn.BatchNorm2d(2, track_running_stats=False), "without running statistics"),
        (Normalizer("layer")(nn.Conv2d(2, 4, 3)), "GroupNorm has no bound here"),
    ],
)
def test_a_module_without_a_bound_is_refused_by_name(module, reason):
    with pytest.raises(NoBound, match=reason):
        network_bound.network_bound(nn.Sequential(module), torch.rand(1, 2, 4, 4))


def test_torchvisions_networks_have_bounds_of_their_blocks(monkeypatch):
    """With 2 for each convolution and its BatchNorm: stem 2 * 2, a block 4 + its shortcut."""
    monkeypatch.setattr(network_bound, "norm_bound", lambda composite, size: 2.0)
    resnet = resnet18()
    nn.init.eye_(resnet.fc.weight)
    found = network_bound.network_bound(resnet, torch.zeros(1, 3, 32, 32))
    blocks = (4 + 1) ** 5 * (4 + 2) ** 3
    assert found == pytest.approx(2 * 2 * blocks, rel=1e-6)  # the last map is a single pixel


@pytest.mark.parametrize("kind", ["none", "convnorm", "spectral_convnorm", "weight", "chain"])
@pytest.mark.parametrize("arch", ["dcgan", "sngan_resnet"])
def test_the_suites_discriminators_have_bounds_above_what_they_do(arch, kind):
    """Pooling, sums over the map, shortcuts; labels that are left out."""
    torch.manual_seed(0)
    normalize = Normalizer(kind, affine=True)
    options = {"image_size": 16, "channels": 1, "options": {"discriminator_width": 4}}
    network = build_discriminator(arch, normalize, **options)
    assert_bounded(network, torch.rand(2, 1, 16, 16) * 2 - 1)


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("simple_cnn", {}),
        ("resnet18", {"norm_position": "before_convolution"}),
        ("resnet50", {"activation": "srelu"}),
        ("vgg11", {"norm_position": "after_activation"}),
        ("preact_resnet18", {}),
    ],
)
def test_the_suites_classifiers_have_bounds_above_what_they_do(arch, settings):
    torch.manual_seed(0)
    normalize = Normalizer("batch", multiplier=True)
    options = {"num_classes": 3, "channels": 1, "image_size": 32, "mean": [0.5], "std": [0.3]}
    network = build_network(arch, normalize, **options, options={"width": 2}, **settings)
    network(torch.rand(4, 1, 32, 32))
    assert_bounded(network, torch.rand(2, 1, 32, 32))


def assert_bounded(network, images):
    norms = jacobian_norms(network, images)
    assert 0 < norms.max() <= network_bound.network_bound(network, images[:1])


def test_jacobians_have_the_norms_of_their_matrices():
    network = chain()
    x = torch.randn(3, 2, 6, 6, dtype=DOUBLE)
    found = jacobian_norms(network, x)
    network.eval()
    for image, norm in zip(x, found, strict=True):
        J = jacobian(network, image[None]).view(3, -1)
        truth = torch.linalg.matrix_norm(J, ord=2).item()
        assert norm <= truth * (1 + 1e-9)
        assert norm == pytest.approx(truth, rel=1e-3)
    bound = network_bound.network_bound(network, x[:1])
    assert found.max() <= bound


def test_a_jacobian_that_is_not_finite_is_said():
    network = chain()
    network[0].weight.data.fill_(math.nan)
    assert jacobian_norms(network, torch.randn(1, 2, 6, 6, dtype=DOUBLE)).isnan().all()
