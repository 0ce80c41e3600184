"""What the user lets torch round (TF32, bfloat16) does not reach gains, norms and weights.

Few processors round, so the rounding is simulated: as soon as the setting allows it, the factors of
every product and convolution lose the bits that TF32 loses.
"""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from convnorm import precision
from convnorm.energy import autocorrelation, spectral_energy
from convnorm.functional import FEW_INPUTS, spectral_gain
from convnorm.normalizers import Normalizer
from convnorm.spectrum import layer_norms, operator_norm, rms_singular_value

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.addmv, aten.dot, aten.vdot}
CONVOLUTIONS = {aten.convolution, aten.convolution_backward}
LAPLACIAN = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(4, 3, 3, 3)


def to_tf32(x: torch.Tensor) -> torch.Tensor:
    """x rounded to 10 bits behind the leading one."""
    if x.dtype != torch.float32:
        return x
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Rounding(TorchDispatchMode):
    """Round the factors of every float32 product, forward and backward, and count them."""

    rounded = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.overloadpacket in PRODUCTS | CONVOLUTIONS:
            self.rounded += any(
                isinstance(a, torch.Tensor) and a.dtype == torch.float32 for a in args
            )
            args = tree_map_only(torch.Tensor, to_tf32, args)
        return operator(*args, **(kwargs or {}))


@pytest.fixture
def allowed():
    """The user allows rounding."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def weights(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def are_close(measured: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return bool((measured - expected).norm() <= tolerance * expected.norm())


KERNELS = {
    "Laplacian": LAPLACIAN,
    "random": weights(8, FEW_INPUTS + 1, 3, 3),
    "large": weights(4, 3, 5, 4),
}
FUNCTIONS = {
    "autocorrelation": autocorrelation,
    "energy": lambda w: spectral_energy(w, (12, 11), stride=(2, 1)),
    "gain": lambda w: spectral_gain(w, (12, 11), dilation=(2, 1)),
}


def value_and_gradient(function, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weight = weight.clone().requires_grad_()
    value = function(weight)
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    value.backward(direction.to(value.dtype))
    return value.detach(), weight.grad


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gain_and_its_gradient_are_those_of_float64(allowed, name, kernel):
    weight = KERNELS[kernel]
    expected = value_and_gradient(FUNCTIONS[name], weight.double())
    with Rounding() as mode:
        measured = value_and_gradient(FUNCTIONS[name], weight)
    assert mode.rounded == 0
    for one, other in zip(measured, expected, strict=True):
        assert one.dtype == torch.float32
        assert are_close(one, other)


def test_the_simulation_would_show_a_gain_that_is_rounded(allowed, monkeypatch):
    """A gain is wrong by a factor where a spectrum vanishes; else the tests here see nothing."""
    monkeypatch.setattr(precision, "products_are_rounded", lambda device: False)
    rough = weights(4, FEW_INPUTS + 1, 3, 3)
    rough -= rough.mean((2, 3), keepdim=True)
    expected = spectral_gain(rough.double(), (12, 11))
    with Rounding() as mode:
        measured = spectral_gain(rough, (12, 11))
    assert mode.rounded > 0
    assert not are_close(measured, expected, 0.01)


NORMALIZED = {
    "spectral": lambda layer: layer.weight,
    "bidirectional": lambda layer: layer.weight,
    "operator": lambda layer: layer.weight,
    "oni": lambda layer: layer.weight,
    "own": lambda layer: layer.weight,
    "aol": lambda layer: layer.weight,
    "spectral_convnorm": lambda layer: layer.operator_norm(),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", NORMALIZED)
def test_norms_and_orthogonal_weights_and_their_gradients(allowed, kind, training):
    """A power iteration, whose vectors must also go on, and Newton's."""
    torch.manual_seed(0)
    layer = Normalizer(kind)(nn.Conv2d(3, 8, 3)).train(training)
    exact = copy.deepcopy(layer).double()

    def passes(layer: nn.Module) -> list[torch.Tensor]:
        for _ in range(3):
            value = NORMALIZED[kind](layer)
        (value.square() * torch.arange(1, value.numel() + 1).view_as(value)).sum().backward()
        gradients = [p.grad for p in layer.parameters() if p.grad is not None]
        return [value.detach(), *gradients, *layer.buffers()]

    before = [buffer.clone() for buffer in layer.buffers()]
    with Rounding() as mode:
        measured = passes(layer)
    assert mode.rounded == 0
    for one, other in zip(measured, passes(exact), strict=True):
        assert one.dtype == torch.float32
        assert are_close(one, other, 1e-5)
    changed = [not torch.equal(*pair) for pair in zip(before, layer.buffers(), strict=True)]
    assert all(changed) == (training or not changed)


@pytest.mark.parametrize("kind", ["none", "spectral", "convnorm", "spectral_convnorm"])
def test_measured_norms(allowed, kind):
    torch.manual_seed(0)
    layer = Normalizer(kind)(nn.Conv2d(3, 8, 3, padding=1)).eval()
    size = torch.Size((1, 3, 9, 8))
    expected = [f(copy.deepcopy(layer).double(), size) for f in (operator_norm, rms_singular_value)]
    with Rounding() as mode:
        measured = [f(layer, size) for f in (operator_norm, rms_singular_value)]
    assert mode.rounded == 0
    assert measured == pytest.approx(expected, rel=1e-6)
    norms = layer_norms(nn.Sequential(layer), size[1:])["0"]
    assert [norms.operator_norm, norms.rms_singular_value] == pytest.approx(measured)


# Dynamo's own way to trace an autograd.Function.
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "kind", ["convnorm", "spectral", "bidirectional", "operator", "oni", "own", "aol"]
)
def test_a_compiled_layer_asks_again_when_the_setting_changes(kind):
    """A graph traced under the default, which rounds the gain where it is used afterwards."""
    torch.compiler.reset()
    wide = []  # how many results of each graph are float64

    def backend(graph, inputs):
        results = [node.meta.get("example_value") for node in graph.graph.nodes]
        wide.append(sum(getattr(result, "dtype", None) == torch.float64 for result in results))
        return graph

    torch.manual_seed(0)
    layer = Normalizer(kind)(nn.Conv2d(FEW_INPUTS + 1, 8, 3)).eval()
    x = weights(2, FEW_INPUTS + 1, 8, 8)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    expected = compiled(x)
    try:
        torch.set_float32_matmul_precision("high")
        torch.testing.assert_close(compiled(x), expected)
    finally:
        torch.set_float32_matmul_precision("highest")
    under_default, under_high = wide
    assert under_high > under_default
    torch.compiler.reset()


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="since torch 2.9")
@pytest.mark.parametrize("bits", ["tf32", "bf16"])
def test_newer_settings_of_torch_are_seen(bits):
    settings = torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul
    seen = []
    try:
        for setting in settings:
            setting.fp32_precision = bits
            seen.append(
                [precision.convolutions_are_rounded("cpu"), precision.products_are_rounded("cpu")]
            )
    finally:
        for setting in settings:
            setting.fp32_precision = "none"
    assert seen == [[True, False], [True, True]]
    assert not precision.convolutions_are_rounded("cpu")


def test_convolutions_on_a_gpu_are_rounded_by_default():
    assert precision.convolutions_are_rounded("cuda")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert not precision.convolutions_are_rounded("cuda")
    assert not precision.products_are_rounded("cuda")
