"""The layer where an nn.Conv2d stands: any input, device and dtype, transforms, exports, tools."""

import copy
import io
import pickle
from contextlib import nullcontext
from functools import partial

import pytest
import reference
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from convnorm import CATALOGUE, ConvNorm2d, Normalizer, filtering, fixed, from_reference, functional
from convnorm import tables as tables_module
from convnorm.fixed import fixed_weights, shared_weights
from convnorm.functional import spectral_gain

every_grid = pytest.mark.parametrize("grid", ["full", "native"])
every_route = pytest.mark.parametrize(
    "route", ["fft", "matrix", "spectrum", "matmul", "fused"], indirect=True
)
# Dynamo's own way to trace an autograd.Function.
traces_functions = pytest.mark.filterwarnings(
    "ignore:.*Function'> should not be instantiated:DeprecationWarning"
)


@pytest.fixture
def route(request, monkeypatch) -> str:
    """The way that a filter is computed; returns the layer's option `filter`."""
    monkeypatch.setattr(filtering, "matrix_is_faster", lambda *_: request.param == "matrix")
    monkeypatch.setattr(functional, "spectrum_is_faster", lambda *_: request.param == "spectrum")
    return request.param if request.param in ("matmul", "fused") else "auto"


@pytest.fixture
def no_tables(monkeypatch) -> None:
    """No table is kept yet."""
    monkeypatch.setattr(tables_module, "_tables", {})


def is_channels_last(x: torch.Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


# Inputs.

INPUTS = {
    "a batch": lambda *size: torch.randn(3, 4, *size),
    "an empty batch": lambda *size: torch.randn(0, 4, *size),
    "an image": lambda *size: torch.randn(4, *size),
    "channels_last": lambda *size: torch.randn(3, 4, *size).to(memory_format=torch.channels_last),
    "strided": lambda *size: torch.randn(3, 4, *size[::-1]).mT,
}
OURS = {
    "full": {},
    "native": {"grid": "native"},
    "matmul": {"filter": "matmul"},
    "fused": {"filter": "fused"},
    "bare": {"affine": False, "batch_norm": False},
    "bare, native": {"affine": False, "batch_norm": False, "grid": "native"},
}


@pytest.mark.parametrize(
    ("size", "convolution"),
    [((4, 5), {}), ((12, 13), {"stride": 2}), ((4, 5), {"kernel_size": 1})],
    ids=str,
)
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("options", OURS.values(), ids=OURS)
def test_takes_what_a_convolution_takes_and_returns_it_in_its_layout(
    options, name, convolution, size
):
    x = INPUTS[name](*size).requires_grad_()
    arguments = {"kernel_size": 3, "padding": 1, **convolution}
    expected = nn.Conv2d(4, 6, **arguments)(x)
    layer = ConvNorm2d(4, 6, **arguments, **options).eval()
    y = layer(x)
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    if x.numel():
        assert is_channels_last(y) == is_channels_last(expected)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert layer.weight.grad.isfinite().all()
    with torch.no_grad():
        plain = x.contiguous() if x.dim() == 4 else x[None]
        torch.testing.assert_close(y, layer(plain).reshape(y.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers_are_refused_by_name(dtype):
    """Their imaginary parts would be dropped without a word."""
    with pytest.raises(TypeError, match=f"real numbers, not {dtype}"):
        ConvNorm2d(3, 4, 3, dtype=dtype)
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(TypeError, match=f"real numbers, not {dtype}"):
        ConvNorm2d(3, 4, 3)(x.to(dtype))
    layer = ConvNorm2d(3, 4, 3)
    layer.weight = nn.Parameter(layer.weight.to(dtype))
    with pytest.raises(TypeError, match=f"real numbers, not {dtype}"):
        layer(x)


@pytest.mark.parametrize("kind", CATALOGUE)
def test_every_kind_computes_in_float64(kind):
    """A buffer or a module that stays float32."""
    normalizer = Normalizer(kind, affine=True)
    conv = nn.Conv2d(3, 4, 3, padding=1, dtype=torch.float64)
    linear = nn.Linear(4, 1, dtype=torch.float64)
    network = nn.Sequential(normalizer(conv), nn.Flatten(2), nn.AdaptiveAvgPool1d(1))
    network.extend([nn.Flatten(1), normalizer(linear)])
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    for mode in (True, False):
        y = network.train(mode)(x)
        assert y.dtype == torch.float64
        y.sum().backward()
    own = [*network.parameters(), *network.buffers()]
    assert {t.dtype for t in own if t.is_floating_point()} == {torch.float64}


# Devices and modes: what is kept of one must not reach another.


HALVED = (2, 3, 4, 4)  # what a layer of stride 2 makes of the maps below


def run(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = layer(x)
    y.sum().backward()
    return y.detach()


def on_meta(layer: nn.Module, x: torch.Tensor) -> None:
    with torch.device("meta"):
        twin = ConvNorm2d(2, 3, 3, layer.stride, 1, grid=layer.grid)
        y = run(twin, torch.empty(x.shape))
    assert y.is_meta
    assert y.shape == HALVED


def under_device_meta(layer: nn.Module, x: torch.Tensor) -> None:
    with torch.device("meta"):
        y = run(layer, x)
    assert y.device == x.device


def fake(layer: nn.Module, x: torch.Tensor) -> None:
    with FakeTensorMode():
        twin = ConvNorm2d(2, 3, 3, layer.stride, 1, grid=layer.grid)
        assert run(twin, torch.empty(x.shape)).shape == HALVED


def in_inference(layer: nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        layer(x)


def transformed(layer: nn.Module, x: torch.Tensor) -> None:
    grad(lambda x: layer(x).sum())(x)


def forward_mode(layer: nn.Module, x: torch.Tensor) -> None:
    with forward_ad.dual_level():
        layer(forward_ad.make_dual(x, x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@pytest.mark.parametrize(
    ("route", "grid"),
    [("fft", "full"), ("matrix", "native"), ("spectrum", "full"), ("matmul", "full")],
    indirect=["route"],
)
@pytest.mark.parametrize(
    "elsewhere", [on_meta, under_device_meta, fake, in_inference, transformed, forward_mode]
)
def test_a_pass_elsewhere_leaves_real_ones_alone(no_tables, elsewhere, grid, route):
    """Elsewhere, here and both again: a table that one keeps and the other cannot use."""
    torch.manual_seed(0)
    layer = ConvNorm2d(2, 3, 3, 2, 1, grid=grid, filter=route).eval()
    x = torch.randn(2, 2, 8, 7)
    elsewhere(layer, x)
    layer.zero_grad()
    first = run(layer, x)
    elsewhere(layer, x)
    torch.testing.assert_close(run(layer, x), first)
    geometry = (layer.stride, (1, 1, 1, 1))
    y = functional.conv_norm2d(x, layer.weight, *geometry, grid=grid, filter=route)
    expected = reference.explicit(x.double(), layer.weight.double(), *geometry, grid=grid)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    assert not any(is_of_a_transform(table) for table in tables_module._tables.values())


def is_of_a_transform(tensor: torch.Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


# Transforms and forward mode.

X = torch.randn(2, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Parameters = dict[str, torch.Tensor]
WAYS = [
    ("fft", "full", "same"),
    ("fft", "native", "circular"),
    ("matrix", "full", "circular"),
    ("matrix", "native", "same"),
    ("spectrum", "full", "same"),
    ("spectrum", "full", "circular"),
    ("matmul", "native", "same"),
    ("matmul", "full", "circular"),
    ("fused", "full", "same"),
]


def parameters_of(layer: nn.Module) -> Parameters:
    return {name: p.detach().clone() for name, p in layer.named_parameters()}


def loss(layer: nn.Module, parameters: Parameters, x: torch.Tensor) -> torch.Tensor:
    y = functional_call(layer, parameters, (x,))
    return (y.square() * torch.linspace(1, 2, y.shape[-1], dtype=y.dtype)).sum()


def ordinary_gradient(layer: nn.Module, parameters: Parameters, x: torch.Tensor) -> Parameters:
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    value = loss(layer, leaves, x)
    return dict(zip(leaves, torch.autograd.grad(value, [*leaves.values()]), strict=True))


def vmap_over_images(layer):
    return vmap(layer)(X), layer(X)


def vmap_over_layers(layer):
    layers = [layer, copy.deepcopy(layer)]
    with torch.no_grad():
        for p in layers[1].parameters():
            p.copy_(torch.randn_like(p))
    stacked, buffers = torch.func.stack_module_state(layers)
    ensemble = vmap(partial(functional_call, layer), ((0, 0), None))((stacked, buffers), (X,))
    return ensemble, torch.stack([one(X) for one in layers])


def gradients(layer):
    p = parameters_of(layer)
    return grad(partial(loss, layer))(p, X), ordinary_gradient(layer, p, X)


def gradients_of_each_image(layer):
    p = parameters_of(layer)
    found = vmap(grad(partial(loss, layer)), (None, 0))(p, X)
    images = [ordinary_gradient(layer, p, x) for x in X]
    return found, {name: torch.stack([image[name] for image in images]) for name in p}


def forward_and_reverse(layer):
    """<u, J v> = <J^T u, v> in the input and in all parameters."""
    p = parameters_of(layer)

    def function(parameters, x):
        return functional_call(layer, parameters, (x,))

    tangents = ({name: torch.randn_like(t) for name, t in p.items()}, torch.randn_like(X))
    y, forward = jvp(function, (p, X), tangents)
    u = torch.randn_like(y)
    cotangents = tree_leaves(vjp(function, p, X)[1](u))
    backward = sum((a * b).sum() for a, b in zip(cotangents, tree_leaves(tangents), strict=True))
    return (u * forward).sum(), backward


def jacobians(layer):
    return jacfwd(layer)(X[:1]), jacrev(layer)(X[:1])


def batched_cotangents(layer):
    """Jacobians of graphs that were made before the transform."""
    x = X[:1].clone().requires_grad_()
    y = layer(x)
    every = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
    (found,) = torch.autograd.grad(y, x, every, is_grads_batched=True)
    return found, jacrev(layer)(X[:1]).flatten(0, 3)


def hessians(layer):
    p = parameters_of(layer)

    def of_weight(weight):
        return loss(layer, {**p, "weight": weight}, X[:1])

    weight = p["weight"]
    return hessian(of_weight)(weight), jacrev(jacrev(of_weight))(weight)


def dual_numbers(layer):
    v = torch.randn_like(X)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(X, v))).tangent
    return tangent, jvp(layer, (X,), (v,))[1]


TRANSFORMS = [
    vmap_over_images,
    vmap_over_layers,
    gradients,
    gradients_of_each_image,
    forward_and_reverse,
    jacobians,
    batched_cotangents,
    hessians,
    dual_numbers,
]


# torch's own forward mode calls torch.jit.script.
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@pytest.mark.parametrize(("route", "grid", "affine_mode"), WAYS, indirect=["route"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_agree_with_ordinary_autograd(transform, affine_mode, grid, route):
    torch.manual_seed(0)
    layer = ConvNorm2d(
        2,
        2,
        3,
        padding=1,
        bias=True,
        dtype=torch.float64,
        grid=grid,
        affine_mode=affine_mode,
        batch_norm=False,
        filter=route,
    )
    found, expected = transform(layer)
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@every_route
@pytest.mark.parametrize("context", [fixed_weights, shared_weights])
@pytest.mark.parametrize("elsewhere", [transformed, forward_mode])
def test_no_result_of_a_transform_is_kept(elsewhere, context, route):
    """It would be met by the next pass, after its transform has ended."""
    layer = ConvNorm2d(2, 3, 3, filter=route).eval()
    layer.requires_grad_(context is shared_weights)
    x = torch.randn(2, 2, 6, 6)
    expected = layer(x)
    with context():
        elsewhere(layer, x)
        kept = [result.get() for result in (fixed._results, fixed._shared)]
        leaves = tree_leaves(
            [dict(table) for results in kept if results for table in results.values()]
        )
        assert not any(isinstance(t, torch.Tensor) and is_of_a_transform(t) for t in leaves)
        torch.testing.assert_close(layer(x), expected)
        elsewhere(layer, x)
        torch.testing.assert_close(layer(x), expected)


# from_conv.


class Own(nn.Conv2d):
    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


class OwnInside(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Named(nn.Conv2d):
    pass


def hooked(register: str) -> nn.Conv2d:
    conv = nn.Conv2d(4, 4, 3)
    getattr(conv, register)(lambda *_: None)
    return conv


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.ConvTranspose2d(4, 4, 3), TypeError, "nn.Conv2d, not a ConvTranspose2d"),
        (lambda: nn.Conv1d(4, 4, 3), TypeError, "nn.Conv2d, not a Conv1d"),
        (lambda: nn.Conv3d(4, 4, 3), TypeError, "nn.Conv2d, not a Conv3d"),
        (lambda: nn.Linear(4, 4), TypeError, "nn.Conv2d, not a Linear"),
        (lambda: nn.LazyConv2d(4, 3), TypeError, "LazyConv2d has no weight yet"),
        (lambda: Own(4, 4, 3), TypeError, r"Own computes in a way of its own \(forward\)"),
        (lambda: OwnInside(4, 4, 3), TypeError, r"OwnInside computes .*\(_conv_forward\)"),
        (lambda: ConvNorm2d(4, 4, 3), TypeError, "ConvNorm2d computes in a way of its own"),
        (
            lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
            TypeError,
            "a parametrized weight: normalize first, then parametrize",
        ),
        (
            lambda: prune.l1_unstructured(nn.Conv2d(4, 4, 3), "weight", 0.5),
            ValueError,
            "_forward_pre_hooks.*stay behind",
        ),
        (lambda: hooked("register_forward_hook"), ValueError, "_forward_hooks"),
        (lambda: hooked("register_full_backward_hook"), ValueError, "_backward_hooks"),
        (lambda: nn.Conv2d(4, 4, 3, dtype=torch.complex64), TypeError, "not torch.complex64"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_from_conv_refuses_by_name_what_is_no_plain_convolution(make, error, message):
    with pytest.raises(error, match=message):
        ConvNorm2d.from_conv(make())


@pytest.mark.parametrize("kind", [nn.Conv2d, Named])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "like", [{}, {"dtype": torch.bfloat16}, {"dtype": torch.float64, "device": "meta"}], ids=str
)
def test_from_conv_keeps_mode_gradients_dtype_and_device(like, training, frozen, kind):
    conv = kind(4, 6, 3, **like).train(training).requires_grad_(not frozen)
    layer = ConvNorm2d.from_conv(conv)
    assert layer.weight is conv.weight
    assert {module.training for module in layer.modules()} == {training}
    for p in layer.affine.parameters():
        assert p.requires_grad is not frozen
    for p in layer.parameters():
        assert (p.dtype, p.device) == (conv.weight.dtype, conv.weight.device)


# Gains of few inputs.


@pytest.mark.parametrize("kernel", ["laplacian", "sobel", "box"])
def test_the_gain_of_few_inputs_is_exact_where_a_spectrum_vanishes(kernel):
    """In float32 it is 3 to 9 % off, where the energy is what rounding leaves."""
    weight = 0.3337 * torch.tensor(reference.DEGENERATE[kernel])[None]
    gain = spectral_gain(weight, (12, 12))
    exact = spectral_gain(weight.double(), (12, 12))
    assert gain.dtype == torch.float32
    assert exact.max() > 100 * exact.min()  # a frequency where it vanishes is on this grid
    torch.testing.assert_close(gain.double(), exact, rtol=1e-6, atol=0)


# Checkpoints of the reference.


def published_layer(state: dict[str, torch.Tensor], x, stride: int, padding: int) -> torch.Tensor:
    """The reference's layer with BatchNorm in evaluation: its affine has the kernel's own size."""
    y = reference.published(x, state["conv.weight"], stride, padding)
    affine, side = state["conv.bpconv.weight"], state["conv.weight"].shape[-1]
    bias = state["conv.bpconv.bias"]
    y = nn.functional.conv2d(y, affine, bias, padding=(side - 1) // 2, groups=len(affine))
    names = ("running_mean", "running_var", "weight", "bias")
    return nn.functional.batch_norm(y, *(state[f"conv.batch_norm.{name}"] for name in names))


@pytest.mark.parametrize(
    ("side", "stride", "padding"), [(3, 1, 1), (4, 2, 1), (4, 1, 1), (2, 1, 0)]
)
def test_a_checkpoint_of_the_reference_gives_its_numbers(side, stride, padding):
    """Even kernels, whose affine shrinks the map."""
    torch.manual_seed(0)
    state = {
        "conv.weight": torch.randn(4, 3, side, side),
        "conv.running_V": torch.ones(4, 10, 6),
        "conv.bpconv.weight": torch.randn(4, 1, side, side),
        "conv.bpconv.bias": torch.randn(4),
        "conv.batch_norm.weight": torch.randn(4),
        "conv.batch_norm.bias": torch.randn(4),
        "conv.batch_norm.running_mean": torch.randn(4),
        "conv.batch_norm.running_var": torch.rand(4) + 0.5,
        "conv.batch_norm.num_batches_tracked": torch.tensor(3),
    }
    layer = ConvNorm2d(3, 4, side, stride, padding, affine_size=side, eps=0.0)
    network = nn.ModuleDict({"conv": layer}).eval()
    network.load_state_dict(from_reference(state))
    x = torch.randn(2, 3, 9, 8)
    expected = published_layer(state, x, stride, padding)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    bare = nn.ModuleDict({"conv": ConvNorm2d(3, 4, side, stride, padding)})
    if side % 2 == 0:
        with pytest.raises(RuntimeError, match=rf"conv.*affine_size=\({side}, {side}\)"):
            bare.load_state_dict(from_reference(state))


def test_the_padding_of_an_affine_is_in_numbers():
    """A word, which quantized convolutions refuse."""
    for size in (None, 5, (3, 4)):
        affine = ConvNorm2d(3, 4, 4, affine_size=size).affine
        assert affine.padding == tuple((k - 1) // 2 for k in affine.kernel_size)
    assert affine.kernel_size == (3, 4)


# The filter by real products, tracers and exporters.


class NoComplex(TorchDispatchMode):
    """Refuse every complex tensor, in backward passes too."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            assert not (isinstance(leaf, torch.Tensor) and leaf.is_complex()), operator
        return result


@every_grid
@pytest.mark.parametrize("size", [(3, 4), (12, 9), (9, 12), (1, 1)])
@pytest.mark.parametrize("through_gain", [False, True])
@pytest.mark.parametrize("affine_mode", ["same", "circular"])
def test_a_filter_by_real_products_is_the_same_function(affine_mode, through_gain, size, grid):
    """Values and gradients, in float32 beside those of float64."""
    torch.manual_seed(0)
    options = {"grid": grid, "affine_mode": affine_mode, "gradient_through_gain": through_gain}
    by_products = ConvNorm2d(3, 4, 3, 2, 1, **options, filter="matmul")
    exact = ConvNorm2d(3, 4, 3, 2, 1, dtype=torch.float64, **options)
    exact.load_state_dict(by_products.state_dict())
    x = torch.randn(2, 3, *size)
    results = []
    for layer, given, mode in ((by_products, x, NoComplex), (exact, x.double(), nullcontext)):
        given = given.requires_grad_()
        with mode():
            y = layer.eval()(given)
            y.square().sum().backward()
        results.append([y.detach(), given.grad, *(p.grad for p in layer.parameters())])
    for found, expected in zip(*results, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() <= 2e-6 * expected.norm()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit")
@every_route
@every_grid
@pytest.mark.parametrize("affine_mode", ["same", "circular"])
def test_a_traced_layer_is_saved_and_takes_any_batch(affine_mode, grid, route):
    torch.manual_seed(0)
    layer = ConvNorm2d(3, 4, 3, 2, 1, grid=grid, affine_mode=affine_mode, filter=route).eval()
    buffer = io.BytesIO()
    traced = torch.jit.trace(layer, torch.randn(3, 3, 8, 7), check_trace=False)
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for count in (1, 5):
        x = torch.randn(count, 3, 8, 7)
        torch.testing.assert_close(loaded(x), layer(x), rtol=1e-5, atol=1e-5)


@traces_functions
@every_grid
@pytest.mark.parametrize("filter", ["auto", "matmul"])
@pytest.mark.parametrize("size", [4, 12])
def test_an_exported_layer_takes_any_batch(size, filter, grid):
    """A batch that chooses the way, or that is taken for a constant."""
    torch.manual_seed(0)
    layer = ConvNorm2d(3, 4, 3, padding=1, grid=grid, filter=filter).eval()
    shapes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(layer, (torch.randn(3, 3, size, size),), dynamic_shapes=shapes)
    for count in (1, 2, 40):
        x = torch.randn(count, 3, size, size)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-5)


@traces_functions
def test_a_compiled_layer_of_open_sizes_is_one_graph_for_all_batches():
    """Values and gradients; of 12 x 12 outputs a matrix is the faster from 9 images on."""
    torch.compiler.reset()
    torch.manual_seed(0)
    layer = ConvNorm2d(3, 4, 3, padding=1, batch_norm=False)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        # 5 is no other size of the first; from 16 images on nn.Conv2d itself is compiled anew.
        for count in (5, 2, 15):
            results = []
            for function in (layer, compiled):
                x = torch.randn(count, 3, 12, 12, generator=torch.manual_seed(0))
                x.requires_grad_()
                layer.zero_grad()
                y = function(x)
                y.square().sum().backward()
                results.append([y.detach(), x.grad, layer.weight.grad])
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@every_grid
@pytest.mark.parametrize("filter", functional.FILTERS)
def test_a_model_with_the_layer_is_traced_by_fx(filter, grid):
    options = {"grid": grid, "filter": filter}
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        ConvNorm2d(4, 4, 3, bias=True, **options),
        ConvNorm2d(4, 4, 3, affine_mode="circular", batch_norm=False, **options),
        nn.ReLU(),
    ).eval()
    traced = torch.fx.symbolic_trace(model)
    for x in (torch.randn(2, 3, 9, 8), torch.randn(1, 3, 12, 12), torch.randn(3, 9, 8)):
        assert torch.equal(traced(x), model(x))


# Tools: what each makes of a layer computes the same.


def checkpointed(layer: nn.Module):
    return lambda x: checkpoint(layer, x, use_reentrant=False)


def assigned(layer: nn.Module) -> nn.Module:
    with torch.device("meta"):
        twin = copy.deepcopy(layer).to_empty(device="meta")
    twin.load_state_dict(layer.state_dict(), assign=True)
    return twin


def pruned(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = 0
    return prune.l1_unstructured(copy.deepcopy(layer), "weight", 1)


TOOLS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "functional_call": lambda layer: (
        lambda x: functional_call(
            layer, {**dict(layer.named_parameters()), **dict(layer.named_buffers())}, (x,)
        )
    ),
    "checkpoint": checkpointed,
    "load_state_dict(assign=True)": assigned,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "prune": pruned,
    "weight_norm": lambda layer: parametrizations.weight_norm(copy.deepcopy(layer)),
    "DataParallel": nn.DataParallel,
}


@pytest.mark.parametrize("name", TOOLS)
@pytest.mark.parametrize("convolution", [nn.Conv2d, ConvNorm2d])
def test_tools_of_torch_take_the_layer(convolution, name):
    """After a forward pass, whose results must not hang on the module."""
    torch.manual_seed(0)
    layer = convolution(3, 4, 3, padding=1).eval()
    x = torch.randn(2, 3, 8, 8)
    layer(x).sum().backward()
    layer.zero_grad()
    made = TOOLS[name](layer)
    y = made(x)
    torch.testing.assert_close(y, layer(x))
    y.sum().backward()
    own = made.parameters() if isinstance(made, nn.Module) else layer.parameters()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own)
