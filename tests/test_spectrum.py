"""Measured norms against dense singular values, and a network left as it was found."""

import math

import pytest
import reference
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from convnorm import CATALOGUE, ConvNorm2d, Normalizer, spectrum
from convnorm.spectrum import (
    layer_norms,
    matrix_norm,
    normalized_convolutions,
    operator_norm,
    rms_singular_value,
)
from gan.networks import ARCHITECTURES, build_discriminator

every_kind = pytest.mark.parametrize("kind", CATALOGUE)


def network(kind, arch="sngan_cnn", **options):
    torch.manual_seed(0)
    normalize = Normalizer(kind, **options)
    return build_discriminator(
        arch, normalize, image_size=16, channels=1, options={"discriminator_width": 4}
    )


def assert_matches_dense(layer, size):
    expected = reference.sigma_max(layer, size)
    measured = operator_norm(layer, torch.Size((1, *size)))
    assert measured == pytest.approx(expected, rel=1e-3)
    assert measured <= expected * (1 + 1e-5)


@every_kind
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("options", [{}, {"grid": "native", "affine": True, "batch_norm": True}])
def test_operator_norm_is_the_largest_singular_value(kind, stride, options):
    """Zero padding, biases, running statistics: the layer as it is in evaluation."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 4, stride, padding=1)
    layer = Normalizer(kind, affine_init="default", **options)(conv)
    for _ in range(5):
        layer(torch.randn(4, 3, 10, 9) * 2 + 1)
    if not CATALOGUE[kind].is_affine:
        layer = layer[0]
    assert_matches_dense(layer.eval(), (3, 10, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operator_norm_of_small_and_clustered_spectra(dtype):
    """More steps than dimensions, equal singular values, a zero map: NaN in a diverged run."""
    torch.manual_seed(0)
    assert_matches_dense(nn.Conv2d(1, 2, 2, dtype=dtype), (1, 2, 2))
    isometry = ConvNorm2d(1, 4, 3, padding=1, padding_mode="circular", affine=False, dtype=dtype)
    assert_matches_dense(isometry.eval(), (1, 6, 6))
    zero = nn.Conv2d(2, 2, 3, dtype=dtype)
    nn.init.zeros_(zero.weight)
    assert operator_norm(zero, torch.Size((1, 2, 5, 5))) == 0.0
    nn.init.constant_(zero.weight, math.nan)
    assert math.isnan(operator_norm(zero, torch.Size((1, 2, 5, 5))))
    assert math.isnan(matrix_norm(zero.weight))
    assert math.isnan(rms_singular_value(zero, torch.Size((1, 2, 5, 5))))


@every_kind
@pytest.mark.parametrize(("channels", "stride"), [((3, 8), 1), ((8, 3), 2)])
def test_rms_singular_value_is_the_frobenius_norm(kind, channels, stride):
    """Over the smaller side of the matrix, without the bias; 64 probes of a map of 243 or more."""
    torch.manual_seed(0)
    layer = Normalizer(kind, affine=True)(nn.Conv2d(*channels, 3, stride, padding=1))
    layer(torch.randn(4, channels[0], 9, 9))
    layer = layer.eval() if CATALOGUE[kind].is_affine else layer.eval()[0]
    A = reference.dense(layer, (channels[0], 9, 9)).flatten(0, 1)
    expected = (A.square().sum() / min(A.shape)).sqrt().item()
    measured = rms_singular_value(layer, torch.Size((1, channels[0], 9, 9)))
    assert measured == pytest.approx(expected, rel=0.015)


def test_largest_over_rms_is_one_for_an_isometry():
    """Catches a mean over the larger side: a wide isometry has as many singular values as rows."""
    torch.manual_seed(0)
    circular = {"padding": 1, "padding_mode": "circular", "groups": 4}
    isometry = ConvNorm2d(4, 4, 3, **circular, affine=False, batch_norm=False, eps=0).eval()
    isometry.double()
    size = torch.Size((1, 4, 8, 8))
    assert rms_singular_value(isometry, size) == pytest.approx(1, rel=1e-6)
    assert operator_norm(isometry, size) == pytest.approx(1, rel=1e-6)
    wide, tall = nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(2, 4, 1, bias=False)
    for conv in (wide, tall):
        nn.init.orthogonal_(conv.weight)
        size = torch.Size((1, conv.in_channels, 16, 16))
        assert rms_singular_value(conv, size) == pytest.approx(1, rel=0.01)
        assert operator_norm(conv, size) == pytest.approx(1, rel=1e-3)


def isometry(n: int) -> nn.Module:
    conv = nn.Conv2d(n, n, 1, bias=False)
    nn.init.orthogonal_(conv.weight)
    return conv


@pytest.mark.parametrize("steps", [1, 4, 40])
@pytest.mark.parametrize("kind", ["ends early", "goes on", "as many steps as numbers", "nan"])
def test_later_looks_change_no_norm(monkeypatch, kind, steps):
    """Lanczos' method goes on over its end, from rounding or 0 / 0; but no step waits."""
    torch.manual_seed(0)
    layer, size = {
        "ends early": lambda: (isometry(4), (1, 4, 5, 5)),
        "goes on": lambda: (nn.Conv2d(3, 4, 3, padding=1), (1, 3, 6, 6)),
        "as many steps as numbers": lambda: (nn.Conv2d(1, 2, 2), (1, 1, 2, 3)),
        "nan": lambda: (nn.Conv2d(2, 2, 3), (1, 2, 5, 5)),
    }[kind]()
    if kind == "nan":
        nn.init.constant_(layer.weight, math.nan)
    with monkeypatch.context() as patch:
        patch.setattr(spectrum, "LOOK_EVERY", 1)
        expected = operator_norm(layer, torch.Size(size), steps)
    taken = []
    layer.register_forward_hook(lambda *_: taken.append(None))
    after: set[int] = set()

    class Waits(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation._schema.name in ("aten::_local_scalar_dense", "aten::nonzero"):
                after.add(len(taken) - 1)  # the layer is asked once before the first step
            return operation(*args, **(kwargs or {}))

    with Waits():
        measured = operator_norm(layer, torch.Size(size), steps)
    assert measured == pytest.approx(expected, rel=1e-14, nan_ok=True)
    assert after <= {10, 20, 30, 40, len(taken) - 1}


def test_stable_rank_is_that_of_the_whole_map():
    """An isometry has the smaller side of its matrix, a map onto one direction 1, zero 0."""
    torch.manual_seed(0)
    size = torch.Size((2, 8, 8))
    orthogonal, zero = (nn.Conv2d(2, 4, 1, bias=False) for _ in range(2))
    nn.init.orthogonal_(orthogonal.weight)
    single = nn.Conv2d(2, 1, 8)  # one output of the whole map
    nn.init.zeros_(zero.weight)
    found = [layer_norms(layer, size)[""].stable_rank for layer in (orthogonal, single, zero)]
    assert found == pytest.approx([2 * 8 * 8, 1, 0], rel=0.05)
    nn.init.constant_(zero.weight, math.nan)
    assert math.isnan(layer_norms(zero, size)[""].stable_rank)


def test_operator_norm_converges_on_a_wide_layer():
    """Too few steps: 64 x 64 channels put many singular values within a percent of the largest."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular")
    waves = reference.exponentials(torch.arange(32), torch.arange(3), 32)
    symbol = torch.einsum("oihw,yh,xw->yxoi", conv.weight.to(waves.dtype), waves, waves)
    expected = torch.linalg.matrix_norm(symbol[:17].to(torch.complex64), ord=2).max().item()
    measured = operator_norm(conv, torch.Size((1, 64, 32, 32)))
    assert measured == pytest.approx(expected, rel=1e-3)


def test_matrix_norm_is_not_the_convolutions():
    """The number that spectral norm controls; an all-ones kernel of k x k differs most."""
    weight = torch.ones(1, 1, 3, 3)
    assert matrix_norm(weight) == pytest.approx(3.0)
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    conv.weight.data.copy_(weight)
    assert operator_norm(conv, torch.Size((1, 1, 6, 6))) == pytest.approx(9.0, rel=1e-3)


@every_kind
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("extras", [False, True])
def test_every_convolution_is_found_once(kind, arch, extras):
    """An affine counted as a convolution, a normalized layer counted twice or left out."""
    D = network(kind, arch, affine=extras, batch_norm=extras, multiplier=extras)
    found = normalized_convolutions(D)
    convs = [m for m in D.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    inside = [
        m
        for layer in found.values()
        for m in layer.modules()
        if isinstance(m, nn.Conv2d) and m.groups == 1
    ]
    assert len(found) == len(convs)
    assert set(inside) == set(convs)
    assert found.keys() == normalized_convolutions(network("none", arch)).keys()


def test_a_layer_alone_is_found_once():
    assert len(normalized_convolutions(ConvNorm2d(3, 4, 3))) == 1


@every_kind
def test_norms_of_a_network_leave_no_trace(kind):
    """Batch statistics or power iterations moved by the look; another latent after a log step."""
    D = network(kind, "dcgan", affine=True, batch_norm=True).train()
    D(torch.randn(4, 1, 16, 16))
    next(m for m in D.modules() if isinstance(m, nn.LeakyReLU)).eval()
    before = {name: tensor.clone() for name, tensor in D.state_dict().items()}
    modes = [module.training for module in D.modules()]
    state = torch.get_rng_state()
    norms = layer_norms(D, torch.Size((1, 16, 16)))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in D.modules()] == modes
    after = D.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not [m for m in D.modules() if m._forward_pre_hooks]
    assert all(p.grad is None for p in D.parameters())
    assert norms.keys() == normalized_convolutions(D).keys()
    assert all(0 < value < 1e3 for pair in norms.values() for value in pair)


def test_norms_are_taken_at_the_size_of_each_map():
    """A norm at another size is another number: zero padding, small maps."""
    D = network("none", "dcgan")
    sizes = {"0": (1, 16, 16), "2": (4, 8, 8)}
    for name, (sigma, norm, rms, stable) in layer_norms(D, torch.Size((1, 16, 16))).items():
        conv = D.get_submodule(name)
        assert norm == pytest.approx(reference.sigma_max(conv, sizes[name]), rel=1e-3)
        assert rms == rms_singular_value(conv, torch.Size((1, *sizes[name])))
        A = reference.dense(conv, sizes[name]).flatten(0, 1)
        expected = A.square().sum() / torch.linalg.matrix_norm(A, ord=2).square()
        assert stable == pytest.approx(expected.item(), rel=0.03)
        assert sigma == pytest.approx(torch.linalg.svdvals(conv.weight.flatten(1))[0].item())


def test_norms_are_of_what_runs_in_evaluation_in_the_dtype_of_the_network():
    """An auxiliary classifier runs in training alone."""

    class Auxiliary(nn.Sequential):
        def forward(self, x):
            return self[0](x) + (self[1](x) if self.training else 0)

    network = Auxiliary(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)).double()
    assert layer_norms(network, torch.Size((1, 8, 8))).keys() == {"0"}
