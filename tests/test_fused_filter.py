"""The fused filter against the FFT in float64: its kernel in Triton's interpreter, its operator."""

import os
import sys
from importlib.util import find_spec

import pytest
import torch
from runs import Child

from convnorm import ConvNorm2d
from convnorm import fused_filter as module
from convnorm.functional import spectral_gain
from convnorm.fused_filter import fused_filter

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
# Odd and even, powers of two and their neighbours, both blocks of 16 and of 64, not square.
SIZES = [
    (1, 1),
    (1, 5),
    (2, 3),
    (4, 4),
    (5, 5),
    (6, 7),
    (8, 10),
    (16, 18),
    (17, 33),
    (32, 32),
    (34, 34),
    (64, 4),
    (65, 66),
    (128, 127),
]
# What is kept of the RING: cropped, subsampled, one pixel.
WINDOWS = [
    (range(1, 9), range(1, 8)),
    (range(1, 10, 2), range(0, 7, 2)),
    (range(0, 10, 3), range(8, 9)),
]
RING = (10, 9)
ONE = (1, 1)  # sample and channel, as the interpreter takes 0.1 s for each map
# Of the largest number; the interpreter rounds bfloat16 towards zero.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-11}


def problem(size, shape=(2, 2), dtype=torch.float32):
    """Maps of `shape` and a gain that has an odd part."""
    torch.manual_seed(0)
    weight = torch.randn(shape[1], 2, 3, 4, dtype=torch.float64)
    gain = spectral_gain(weight, size)
    x = torch.randn(*shape, *size, dtype=torch.float64)
    return x.to(dtype), gain.to(torch.float64 if dtype == torch.float64 else torch.float32)


def by_fft(x, gain, rows=None, columns=None):
    """In float64, without anything of the package."""
    y = torch.fft.irfft2(gain.double() * torch.fft.rfft2(x.double()), s=x.shape[-2:])
    y = y if rows is None else y[:, :, list(rows)]
    return y if columns is None else y[..., list(columns)]


def assert_near(found, exact):
    assert found.shape == exact.shape
    error = (found.double() - exact).abs().max() / exact.abs().max()
    assert error < ROUNDING[found.dtype]


def traced(graphs):
    """A backend that runs what it is given, and keeps the names of the operations."""

    def backend(graph, example):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    return backend


def derivatives(function, x):
    """Value, gradient and second derivative of a function of maps that is not linear."""
    x = x.detach().requires_grad_()
    y = function(x)
    (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return [y.detach(), first.detach(), second]


# The kernel


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1, :1].expand(x.shape),
}
HALVES = (torch.bfloat16, torch.float16)


def interpret(file: str) -> None:
    """Run the kernel on CPU tensors, which a process decides before it imports triton."""
    os.environ["TRITON_INTERPRET"] = "1"
    module.INTERPRETED = True
    found = {}
    for size in SIZES:
        x, gain = problem(size, ONE)
        found[size] = fused_filter(x, gain)
    x, gain = problem(RING, ONE)
    for window in WINDOWS:
        found[str(window)] = derivatives(lambda x, kept=window: fused_filter(x, gain, *kept), x)
    x, gain = problem(RING)
    for name, layout in LAYOUTS.items():
        found[name] = fused_filter(layout(x), gain)
    for dtype in HALVES:
        x, gain = problem(RING, ONE, dtype)
        found[dtype] = fused_filter(x, gain)
    torch.save(found, file)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """What the kernel computes of all that is tested here."""
    folder = tmp_path_factory.mktemp("interpreted")
    code, output = Child(folder / "output.txt", interpret, folder / "found.pt").end(300)
    assert code == 0, output
    return torch.load(folder / "found.pt")


@needs_triton
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_kernel_is_the_filter_on_every_ring(size, interpreted):
    """A wrong sign of the odd part, the middle of an odd ring twice, a block that is too small."""
    assert_near(interpreted[size], by_fft(*problem(size, ONE)))


@needs_triton
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_kernel_writes_what_is_kept_and_its_adjoint_reads_it(window, interpreted):
    x, gain = problem(RING, ONE)
    exact = derivatives(lambda x: by_fft(x, gain, *window), x.double())
    for found, expected in zip(interpreted[str(window)], exact, strict=True):
        assert_near(found, expected)


@needs_triton
@pytest.mark.parametrize("name", LAYOUTS)
def test_kernel_reads_maps_of_any_strides(name, interpreted):
    x, gain = problem(RING)
    assert_near(interpreted[name], by_fft(LAYOUTS[name](x), gain))
    assert interpreted[name].is_contiguous()


@needs_triton
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_kernel_computes_half_precision_in_float32(dtype, interpreted):
    """Nothing is rounded but the result."""
    found = interpreted[dtype]
    assert found.dtype == dtype
    assert_near(found, by_fft(*problem(RING, ONE, dtype)))


def compile_for_gpu(folder: str) -> None:
    """Compile the kernel for an H100, which needs none."""
    os.environ["TRITON_CACHE_DIR"] = folder
    import triton
    from triton.backends.compiler import GPUTarget

    from convnorm.fused_kernel import filter_map

    constants = {"ROWS": 16, "COLUMNS": 16, "PRECISION": module.PRODUCTS[torch.bfloat16]}
    pointers = {"x": "*bf16", "y": "*bf16"}
    pointers |= dict.fromkeys(("gain", "row_table", "column_table"), "*fp32")
    types = {
        name: "constexpr" if name in constants else pointers.get(name, "i32")
        for name in filter_map.arg_names
    }
    source = triton.compiler.ASTSource(filter_map, types, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert "mma.sync" in compiled.asm["ptx"]


@needs_triton
def test_kernel_compiles_for_a_gpu(tmp_path):
    """What the interpreter allows and the compiler does not."""
    code, output = Child(tmp_path / "output.txt", compile_for_gpu, str(tmp_path)).end(300)
    assert code == 0, output


# The operator, which on a CPU takes FFTs


@pytest.mark.parametrize("window", [(None, None), *WINDOWS], ids=str)
def test_operator_is_the_filter_and_so_are_its_derivatives(window):
    x, gain = problem(RING, dtype=torch.float64)
    found = derivatives(lambda x: fused_filter(x, gain, *window), x)
    exact = derivatives(lambda x: by_fft(x, gain, *window), x)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize(("batch_size", "dtype"), [(2, torch.float32), (0, torch.bfloat16)])
def test_operator_keeps_what_torch_asks_of_one(batch_size, dtype):
    """A fake result of another shape, dtype or layout, an alias, a lost gradient."""
    x, gain = problem(RING, (batch_size, 3), dtype)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    arguments = (x, gain.float(), 9, [0, 1, 10, 0, 1, 9], [1, 2, 4, 0, 1, 9])
    found = torch.library.opcheck(torch.ops.convnorm.fused_filter.default, arguments)
    assert set(found.values()) == {"SUCCESS"}


def test_operator_is_traced_as_one_and_not_into():
    x, gain = problem(RING)
    graphs = []
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: fused_filter(x, gain, range(1, 9)), fullgraph=True, backend=traced(graphs)
    )
    torch.testing.assert_close(compiled(x), fused_filter(x, gain, range(1, 9)))
    assert len(graphs) == 1
    assert any("fused_filter" in target for target in graphs[0])
    assert not any("fft" in target for target in graphs[0])


def test_operator_refuses_what_it_would_compute_wrongly():
    x, gain = problem(RING)
    with pytest.raises(ValueError, match=r"must be \(2, 10, 5\), not \(2, 10, 6\)"):
        fused_filter(x, spectral_gain(torch.randn(2, 1, 3, 3), (10, 10)))
    with pytest.raises(ValueError, match=r"must be \(2, 10, 5\), not \(1, 10, 5\)"):
        fused_filter(x, gain[:1])
    with pytest.raises(ValueError, match="no gradient reaches the gain"):
        fused_filter(x, gain.requires_grad_())


def test_a_missing_triton_is_named(monkeypatch):
    monkeypatch.setattr(module, "INTERPRETED", True)
    monkeypatch.setitem(sys.modules, "convnorm.fused_kernel", None)
    with pytest.raises(RuntimeError, match=r"the fused filter needs triton \(.*fused_kernel"):
        fused_filter(*problem(RING))


# The layer's option


@pytest.mark.parametrize("grid", ["full", "native"])
def test_layer_with_the_option_is_the_same_layer(grid):
    """Cropped and subsampled alike; in half precision too, and compiled."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    fused = ConvNorm2d(3, 4, 3, stride=2, padding=1, grid=grid, filter="fused")
    plain = ConvNorm2d(3, 4, 3, stride=2, padding=1, grid=grid)
    plain.load_state_dict(fused.state_dict())
    graphs = []
    torch.compiler.reset()
    compiled = torch.compile(fused, fullgraph=True, backend=traced(graphs))
    for dtype, enabled in ((torch.float32, False), (torch.bfloat16, True)):
        with torch.autocast("cpu", dtype, enabled=enabled):
            found, expected = compiled(x), plain(x)
        torch.testing.assert_close(found, expected)
        direction = torch.randn_like(found)
        gradients = (
            torch.autograd.grad(y, [x, layer.weight], direction)
            for y, layer in ((found, fused), (expected, plain))
        )
        torch.testing.assert_close(*map(list, gradients))
    assert all(any("fused_filter" in target for target in graph) for graph in graphs)


def test_a_gain_that_takes_a_gradient_gets_it():
    layer = ConvNorm2d(3, 4, 3, batch_norm=False, gradient_through_gain=True, filter="fused")
    plain = ConvNorm2d(3, 4, 3, batch_norm=False, gradient_through_gain=True)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 6, 6)
    gradients = [torch.autograd.grad(each(x).sin().sum(), each.weight) for each in (layer, plain)]
    torch.testing.assert_close(*gradients)
