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
    """A small model with a layer of every form at a tolerance of 5 %."""
    torch.manual_seed(0)
    model = nn.Sequential(
        ConvNorm2d(1, 8, 3, padding=1, **options),  # the image: few inputs
        nn.ReLU(),
        ConvNorm2d(8, 8, 4, 2, 1, grid="native", **options),
        nn.ReLU(),
        ConvNorm2d(8, 16, 1, **options),
        ConvNorm2d(16, 16, 3, padding=1, affine_mode="circular", **options),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(2, 1, 20, 20)


@pytest.fixture(scope="module")
def more() -> torch.Tensor:
    return torch.randn(5, 1, 20, 20)


def models(x: torch.Tensor) -> dict[str, nn.Module]:
    return {
        "as it is": network(),
        "by products": network(filter="matmul"),
        "folded": fold(network(), x, tolerance=0.05)[0],
        "folded exactly": fold(network(), x, tolerance=0)[0],
    }


NAMES = ("as it is", "by products", "folded", "folded exactly")


@pytest.mark.parametrize("name", NAMES)
def test_a_program_takes_any_batch(name, x, more):
    model = models(x)[name]
    program = torch.export.export(model, (x,), dynamic_shapes=({0: BATCH},))
    torch.testing.assert_close(program.module()(more), model(more), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES[1:])
def test_torchscript_is_saved_and_loaded(name, x, more):
    model = models(x)[name]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; sizes become constants
        torch.jit.save(torch.jit.trace(model, x), file)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(file)
    torch.testing.assert_close(loaded(more), model(more), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_computes_the_same(name, x, more, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, file = models(x)[name], str(tmp_path / "model.onnx")
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
