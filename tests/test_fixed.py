"""What `fixed_weights` keeps: the same outputs, each weight's consequences once, nothing after."""

import copy
import weakref
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from convnorm import ConvNorm2d, functional
from convnorm.fixed import computed_once, fixed_weights, shared_weights
from convnorm.normalizers import Normalizer

KINDS = {
    "full": Normalizer("convnorm", grid="full"),
    "native": Normalizer("convnorm", grid="native"),
    "spectral": Normalizer("spectral"),
    "bidirectional": Normalizer("bidirectional"),
    "operator": Normalizer("operator"),
    "own": Normalizer("own"),
    "aol": Normalizer("aol"),
    "weight": Normalizer("weight", multiplier=True),
}
KINDS_FROM_WEIGHTS = (
    "convnorm",
    "spectral",
    "bidirectional",
    "operator",
    "oni",
    "own",
    "aol",
    "spectral_convnorm",
)


def layer_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return KINDS[kind](nn.Conv2d(3, 4, 3, padding=1)).eval().requires_grad_(False)


def images(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gains(monkeypatch) -> Counter:
    """How often the gain was computed."""
    calls = Counter()
    compute = functional.spectral_gain

    def counted(*args):
        calls["gain"] += 1
        return compute(*args)

    monkeypatch.setattr(functional, "spectral_gain", counted)
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_the_same_inside_and_outside(kind):
    layer, x = layer_of(kind), images()
    outside = layer(x)
    with fixed_weights():
        assert torch.equal(layer(x), outside)
        assert torch.equal(layer(x), outside)
        assert layer(x[..., :6]).shape == (2, 4, 8, 6)  # a gain kept for the wrong grid
    assert torch.equal(layer(x), outside)


def test_the_gain_is_computed_once_inside_and_every_time_outside(gains):
    layer, x = layer_of("full"), images()
    with fixed_weights():
        for _ in range(3):
            layer(x)
    assert gains["gain"] == 1
    layer(x)
    layer(x)
    assert gains["gain"] == 3


def test_a_parametrized_weight_is_computed_once_inside():
    layer, x = layer_of("spectral"), images()
    calls = Counter()
    layer.parametrizations.weight[0].parametrization.register_forward_hook(
        lambda *_: calls.update(["weight"])
    )
    with fixed_weights():
        for _ in range(3):
            layer(x)
    assert calls["weight"] == 1
    layer(x)
    assert calls["weight"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_beside_its_original_has_its_own_weights(kind):
    """torch's own cache, parametrize.cached(), gives an averaged copy the original's weights."""
    layer, x = layer_of(kind), images()
    other = copy.deepcopy(layer)
    for parameter in other.parameters():
        parameter += torch.linspace(0, 1, parameter.numel()).view_as(parameter)
    expected = layer(x), other(x)
    with fixed_weights():
        assert torch.equal(layer(x), expected[0])
        assert torch.equal(other(x), expected[1])


def test_a_nested_context_shares_the_results_of_the_outer_one(gains):
    """An attack inside an evaluation that computes every gain anew, or forgets what was known."""
    layer, x = layer_of("full"), images()
    with fixed_weights():
        layer(x)
        for _ in range(2):
            with fixed_weights():
                layer(x)
        layer(x)
    assert gains["gain"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_weights_changed_after_leaving_are_seen(kind):
    layer, x = layer_of(kind), images()
    with fixed_weights(), fixed_weights():
        before = layer(x)
    for parameter in layer.parameters():
        parameter += torch.linspace(0, 1, parameter.numel()).view_as(parameter)
    with fixed_weights():
        inside = layer(x)
    assert not torch.equal(inside, before)
    assert torch.equal(inside, layer(x))


def test_an_exception_ends_the_context(gains):
    layer, x = layer_of("full"), images()

    def interrupted():
        with fixed_weights(), fixed_weights():
            layer(x)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    layer(x)
    layer(x)
    assert gains["gain"] == 3


# Dynamo's own way to trace an autograd.Function.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["native", "spectral"])
def test_a_compiled_model_gives_the_same_inside_and_outside(kind):
    """Dynamo cannot trace a context variable."""
    layer, x = layer_of(kind), images()
    expected = layer(x)
    compiled = torch.compile(layer, backend="aot_eager")
    assert torch.allclose(compiled(x), expected, atol=1e-6)
    with fixed_weights():
        assert torch.allclose(compiled(x), expected, atol=1e-6)
    assert torch.allclose(compiled(x), expected, atol=1e-6)


def test_gains_computed_in_inference_mode_serve_an_attack():
    layer, x = layer_of("full"), images()
    with fixed_weights():
        with torch.inference_mode():
            layer(x)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("through_gain", [False, True])
@pytest.mark.parametrize("kind", KINDS_FROM_WEIGHTS)
def test_a_gradient_is_refused_and_not_dropped(kind, through_gain):
    """An update of weights inside, whose gradients lack what went through the constants."""
    torch.manual_seed(0)
    normalize = Normalizer(kind, gradient_through_gain=through_gain, affine=True)
    layer, x = normalize(nn.Conv2d(3, 4, 3, padding=1, bias=False)).eval(), images()
    with fixed_weights(), torch.no_grad():
        kept = layer(x)
    with fixed_weights():
        with torch.no_grad():
            assert torch.equal(layer(x), kept)
        with pytest.raises(RuntimeError, match=r"requires a gradient inside fixed_weights"):
            layer(x)
        layer.requires_grad_(False)
        assert torch.equal(layer(x), kept)


def test_the_gradient_of_an_affine_is_refused_where_the_norm_depends_on_it():
    layer = Normalizer("spectral_convnorm", affine=True)(nn.Conv2d(3, 4, 3)).eval()
    for parameter in (layer.layer.weight, layer.layer.bias):
        parameter.requires_grad_(False)
    with fixed_weights(), pytest.raises(RuntimeError, match=r"of shape \(4, 1, 3, 3\) requires"):
        layer(images())


@pytest.mark.parametrize("through_gain", [False, True])
def test_weights_made_anew_in_every_pass_leave_nothing_behind(monkeypatch, through_gain):
    """Memory that grows with every batch of an evaluation."""
    conv = ConvNorm2d(3, 4, 3, gradient_through_gain=through_gain)
    layer = nn.utils.parametrizations.weight_norm(conv).eval().requires_grad_(False)
    gains, compute = [], functional.spectral_gain

    def recorded(*args):
        gain = compute(*args)
        gains.append(weakref.ref(gain))
        return gain

    monkeypatch.setattr(functional, "spectral_gain", recorded)
    expected = layer(images())
    with fixed_weights():
        for _ in range(4):
            assert torch.equal(layer(images()), expected)
        assert [gain() for gain in gains] == [None] * 5


def test_a_freed_tensor_does_not_lend_its_id():
    """Results are found by id, and Python gives the id of a freed tensor to the next one."""
    with fixed_weights():
        for value in range(50):
            assert computed_once(torch.neg, torch.tensor(float(value))) == -value


# Passes whose losses are added


def two_passes(layer: nn.Module, shared: bool) -> list[torch.Tensor]:
    """Outputs of both, and the gradients of the sum."""
    layer.zero_grad()
    with shared_weights() if shared else nullcontext():
        first, second = (layer(x.to(layer.weight.dtype)) for x in (images(2), images(5).sqrt()))
    (first.square().sum() + second.sin().sum()).backward()
    return [first, second, *(weight.grad for weight in layer.parameters())]


@pytest.mark.parametrize("kind", KINDS)
def test_shared_passes_give_what_separate_ones_give(kind):
    """A gradient that reaches one pass alone; a power iteration that stops."""
    layer = layer_of(kind).train().requires_grad_(True).double()
    twin = copy.deepcopy(layer)
    shared, separate = two_passes(layer, shared=True), two_passes(twin, shared=False)
    for ours, theirs in zip(shared, separate, strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(layer.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_shared_passes_compute_a_gain_once(gains):
    layer = layer_of("native").requires_grad_(True)
    with shared_weights():
        layer(images())
        with torch.no_grad():  # a constant is one in either mode
            layer(images(3))
        with shared_weights():
            layer(images(4))
    assert gains["gain"] == 1
    layer(images())
    assert gains["gain"] == 2


def test_a_weight_changed_after_shared_passes_is_seen():
    """A result that outlives its step."""
    layer, twin = (layer_of("full").requires_grad_(True) for _ in range(2))
    for module in (layer, twin):
        with shared_weights() if module is layer else nullcontext():
            module(images(32))
        with torch.no_grad():
            module.weight.mul_(torch.linspace(1, 2, 3)[:, None, None])
    with shared_weights():
        assert torch.equal(layer(images(32)), twin(images(32)))


def test_shared_passes_keep_gradients_and_constants_apart():
    """A kernel made without gradients, and then one that needs them."""
    layer = layer_of("full").requires_grad_(True)
    with shared_weights():
        with torch.no_grad():
            expected = layer(images(32))
        found = layer(images(32))
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_inside_fixed_weights_sharing_adds_nothing(gains):
    layer = layer_of("native")
    with fixed_weights(), shared_weights():
        layer(images())
    with shared_weights(), fixed_weights():
        layer(images())
        layer(images())
    assert gains["gain"] == 2
