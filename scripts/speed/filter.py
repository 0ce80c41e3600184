"""Part `filter`: what the two rules rest on that choose how ConvNorm is computed.

`filtering.matrix_is_faster`: the circular filter by one matrix and by a pair of FFTs, forward and
backward of maps of n x n, of which every `step`-th pixel is kept; 64 channels; three batch sizes.
`spectrum_is_faster`: the layers of part `layer` on the full grid, convolved and filtered one after
the other and frequency by frequency, at four batch sizes.
"""

from functools import partial
from itertools import cycle, product
from typing import Any
from unittest import mock

import torch

from convnorm import ConvNorm2d, filtering, functional
from convnorm.filtering import circular_filter
from convnorm.functional import spectral_gain
from speed.bench import Bench, compared, inputs, tell
from speed.clock import Run
from speed.layer import SHAPES, training

CHANNELS = 64
MOST_KEPT = 16  # pixels a side: the matrix of a whole 34 x 34 map takes 342 MB


def measure(bench: Bench) -> dict[str, Any]:
    """Time the filter both ways at every size."""
    batch = bench.batch_size
    batches = (batch,) if bench.tiny else (max(1, batch // 8), batch, 4 * batch)
    sizes = (6,) if bench.tiny else (6, 8, 10, 12, 18, 34)
    measured = []
    for batch_size, n, step in product(batches, sizes, (1, 2, 4)):
        kept = range(0, n, step)
        if len(kept) > MOST_KEPT:
            continue
        choice = filtering.matrix_is_faster(len(kept) ** 2, batch_size, bench.device.type)
        record = {
            "batch_size": batch_size,
            "grid": n,
            "outputs": len(kept) ** 2,
            "chosen": "matrix" if choice else "fft",
            **compared(bench.in_turn(both_ways(batch_size, n, kept, bench))),
        }
        what = f"{n} x {n}, {record['outputs']} outputs, {record['chosen']} chosen"
        tell(f"batch {batch_size}, {what}", record)
        measured.append(record)
    return {"channels": CHANNELS, "filters": measured, "full_grid": on_the_full_grid(bench)}


def on_the_full_grid(bench: Bench) -> list[dict[str, Any]]:
    """Time a training step of every layer both ways, on a CPU, where there is a choice."""
    if bench.on_gpu:
        return []
    shapes = dict.fromkeys(shape for shapes in SHAPES.values() for shape in shapes if shape[2] > 1)
    batch = bench.batch_size
    batches = (batch,) if bench.tiny else (max(1, batch // 8), batch // 4, batch // 2, batch)
    measured = []
    for (*geometry, size), batch_size in product([*shapes][: 1 if bench.tiny else None], batches):
        layer = ConvNorm2d(*geometry, affine=False, batch_norm=False)
        x = torch.randn(batch_size, geometry[0], size, size)
        ring = (size + geometry[2] - 1,) * 2
        choice = functional.spectrum_is_faster(x, layer.weight, 1, ring)
        record = {
            "shape": [*geometry, size],
            "batch_size": batch_size,
            "chosen": "spectrum" if choice else "direct",
            **compared(bench.in_turn(both_routes(layer, x, bench))),
        }
        tell(f"batch {batch_size}, {record['shape']}, {record['chosen']} chosen", record)
        measured.append(record)
    return measured


def both_routes(layer: ConvNorm2d, like: torch.Tensor, bench: Bench) -> dict[str, Run]:
    """A training step of a layer directly and frequency by frequency, a new map in each call."""
    step = training(layer, inputs(lambda: torch.randn_like(like).requires_grad_(), bench))

    def run(spectrum: bool) -> None:
        with mock.patch.object(functional, "spectrum_is_faster", return_value=spectrum):
            step()

    return {"direct": partial(run, False), "spectrum": partial(run, True)}


def both_ways(batch_size: int, n: int, kept: range, bench: Bench) -> dict[str, Run]:
    """The filter by FFT and by a matrix, a new map in each call."""
    device = bench.device
    gain = spectral_gain(torch.randn(CHANNELS, CHANNELS, 3, 3, device=device), (n, n))
    size = (batch_size, CHANNELS, n, n)
    maps = inputs(lambda: torch.randn(size, device=device).requires_grad_(), bench)
    direction = torch.randn(batch_size, CHANNELS, len(kept), len(kept), device=device)
    following = cycle(maps)

    def run(matrix: bool) -> None:
        x = next(following)
        x.grad = None
        with mock.patch.object(filtering, "matrix_is_faster", return_value=matrix):
            circular_filter(x, gain, kept, kept).backward(direction)

    return {"fft": partial(run, False), "matrix": partial(run, True)}
