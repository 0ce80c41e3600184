"""What leaves PyTorch: ConvNorm layers as they are, by products, and folded."""

import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from convnorm.fold import fold
from convnorm.layer import ConvNorm2d

BATCH = torch.export.Dim("batch", min=1, max=64)


def network(**options) -> nn.Module:
    """A small model on both grids, and with an affine of both modes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        ConvNorm2d(1, 4, 3, padding=1, **options),  # the image: few inputs
        nn.ReLU(),
        ConvNorm2d(4, 4, 4, 2, 1, grid="native", affine_mode="circular", **options),
        ConvNorm2d(4, 8, 1, **options),
    )
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(2, 1, 20, 20)


@pytest.fixture(scope="module")
def more() -> torch.Tensor:
    return torch.randn(5, 1, 20, 20)


def model_as(name: str, x: torch.Tensor) -> nn.Module:
    match name:
        case "as it is":
            return network()
        case "by products":
            return network(filter="matmul")
        case "folded":
            return fold(network(), x, tolerance=0.05)[0]
    return fold(network(), x, tolerance=0)[0]


@pytest.mark.parametrize("name", ["as it is", "folded exactly"])
def test_a_program_takes_any_batch(name, x, more):
    model = model_as(name, x)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: BATCH},))
    torch.testing.assert_close(program.module()(more), model(more), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["by products", "folded"])
def test_torchscript_is_saved_and_loaded(name, x, more):
    model = model_as(name, x)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; sizes become constants
        torch.jit.save(torch.jit.trace(model, x), file)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(file)
    torch.testing.assert_close(loaded(more), model(more), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["as it is", "folded"])
def test_onnxruntime_computes_the_same(name, x, more, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, file = model_as(name, x), str(tmp_path / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own
        program = torch.onnx.export(
            model, (x,), dynamo=True, dynamic_shapes=({0: BATCH},), verbose=False
        )
    program.save(file)
    nodes = {node.op_type for node in program.model.graph}
    assert ("DFT" in nodes) == (name == "as it is")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    np.testing.assert_allclose(y, model(more).numpy(), atol=1e-4)
