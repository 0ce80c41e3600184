"""Part `layers`: the single layers of scripts/bench_speed.py, as replays of CUDA graphs.

A replay leaves out what the process does, which in a whole step often takes longer than the GPU.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from device_checks.part import Case, Finding, Setup
from speed.clock import median_milliseconds, replayed
from speed.layer import RATIOS, SHAPES, variants


def cases(setup: Setup) -> Iterator[tuple[str, Case]]:
    """Every shape in float32 and in bfloat16."""
    shapes = list(dict.fromkeys(chain(*SHAPES.values())))
    if setup.tiny:
        shapes = [(3, 8, 3, 1, 1, 8)]
    for shape in shapes:
        for precision in (torch.float32, torch.bfloat16):
            name = f"{' '.join(map(str, shape))} {str(precision).removeprefix('torch.')}"
            yield name, partial(variants_timed, shape, precision, setup)


def variants_timed(shape: tuple[int, ...], precision: torch.dtype, setup: Setup) -> Finding:
    """Forward and backward of each variant, and the ratios that bench_speed.py prints."""
    *geometry, size = shape
    batch = 2 if setup.tiny else 128
    x = torch.randn(batch, shape[0], size, size, device=setup.device).requires_grad_()
    times, failures = {}, []
    for name, layer in variants(*geometry).items():
        run = partial(_passed, layer.to(setup.device), x, precision)
        try:
            replay = replayed(run, setup.device)
            times[name] = median_milliseconds(replay, setup.calls, setup.device)
        except RuntimeError as error:  # the others may well be captured
            failures.append(f"{name}: {str(error).splitlines()[0]}")
    if failures:
        return Finding("no ratios", {"ms": times}, tuple(failures))
    ratios = {name: times[above] / times[below] for name, (above, below) in RATIOS.items()}
    line = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    plain = f"conv_bn takes {times['conv_bn']:.3f} ms on {setup.card}"
    return Finding(f"{line}; {plain}", {"ratios": ratios, "ms": times})


def _passed(layer: nn.Module, x: Tensor, precision: torch.dtype) -> None:
    # A cast that autocast keeps from one pass to the next cannot be captured.
    with torch.autocast(
        x.device.type, torch.bfloat16, enabled=precision == torch.bfloat16, cache_enabled=False
    ):
        y = layer(x)
    torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))
