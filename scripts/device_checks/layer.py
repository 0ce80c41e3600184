"""Part `layer`: ConvNorm2d, forward and backward, against float64 on the CPU.

BatchNorm is left out: it would hide a wrong factor.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from convnorm import ConvNorm2d
from convnorm.functional import GRIDS
from device_checks.numerics import relative_error, tf32
from device_checks.part import Case, Finding, Setup

# in channels, out channels, kernel, stride, padding, map size.
SHAPES = (
    (3, 64, 3, 1, 1, 32),
    (64, 64, 4, 2, 1, 32),
    (64, 128, 1, 2, 0, 32),
    (64, 64, 3, 1, 1, 32),
    (64, 128, 3, 2, 1, 32),
    (128, 128, 3, 1, 1, 16),
    (128, 256, 3, 2, 1, 16),
    (256, 256, 3, 1, 1, 8),
    (512, 512, 3, 1, 1, 4),
    (128, 128, 4, 2, 1, 16),
    (256, 256, 4, 2, 1, 8),
    (16, 16, 5, 1, 2, 17),
)
TINY_SHAPES = ((3, 8, 3, 1, 1, 8), (8, 8, 4, 2, 1, 8))
COMPILED = 3  # shapes: each takes seconds, so tiny none
# Mode -> the largest relative error of the output and of both gradients.
LIMITS = {"fp32": 1e-4, "channels_last": 1e-4, "tf32": 5e-3, "bf16": 5e-2, "compile": 1e-4}


class Pass(NamedTuple):
    """One forward and backward pass through a layer."""

    output: Tensor
    input_gradient: Tensor
    weight_gradient: Tensor


def cases(setup: Setup) -> Iterator[tuple[str, Case]]:
    """Every shape on both grids in all modes of rounding and layout; then some compiled."""
    eager = tuple(mode for mode in LIMITS if mode != "compile")
    for shape, grid in product(TINY_SHAPES if setup.tiny else SHAPES, GRIDS):
        yield f"{_words(shape)} {grid}", partial(against_float64, shape, grid, eager, setup)
    for shape, grid in product(() if setup.tiny else SHAPES[:COMPILED], GRIDS):
        case = partial(against_float64, shape, grid, ("compile",), setup)
        yield f"{_words(shape)} {grid}, compiled", case


def _words(shape: tuple[int, ...]) -> str:
    return " ".join(map(str, shape))


def against_float64(
    shape: tuple[int, ...], grid: str, modes: tuple[str, ...], setup: Setup
) -> Finding:
    """The relative errors of output, input's gradient and weight's gradient, in every mode."""
    *geometry, size = shape
    torch.manual_seed(0)
    layer = ConvNorm2d(*geometry, grid=grid, batch_norm=False).double()
    x = torch.randn(2 if setup.tiny else 16, shape[0], size, size, dtype=torch.float64)
    direction = torch.randn_like(layer(x))
    exact = _passed(layer, x, direction, "fp32")
    numbers, failures = {}, []
    for mode in modes:
        again = ConvNorm2d(*geometry, grid=grid, batch_norm=False)
        again.load_state_dict(layer.state_dict())
        found = _passed(again.to(setup.device), x.float().to(setup.device), direction, mode)
        errors = [relative_error(a, b) for a, b in zip(found, exact, strict=True)]
        numbers[mode] = dict(zip(Pass._fields, errors, strict=True))
        if not max(errors) < LIMITS[mode]:  # a NaN is no less
            failures.append(f"{mode}: {max(errors):.1e}, allowed is {LIMITS[mode]:.0e}")
    worst = ", ".join(f"{mode} {max(errors.values()):.0e}" for mode, errors in numbers.items())
    return Finding(f"relative errors {worst}", numbers, tuple(failures))


def _passed(layer: ConvNorm2d, x: Tensor, direction: Tensor, mode: str) -> Pass:
    if mode == "channels_last":
        layer, x = (each.to(memory_format=torch.channels_last) for each in (layer, x))
    x = x.detach().clone().requires_grad_()
    function = layer
    if mode == "compile":
        torch.compiler.reset()
        backend = (
            "inductor" if x.device.type == "cuda" else "aot_eager"
        )  # no need of a C++ compiler
        function = torch.compile(layer, fullgraph=True, backend=backend)
    with tf32(mode in ("tf32", "bf16")):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mode == "bf16"):
            output = function(x)
        output.backward(direction.to(output))
    return Pass(output, x.grad, layer.weight.grad)
