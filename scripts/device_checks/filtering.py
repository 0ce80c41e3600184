"""Part `filter`: the circular filter by FFT, by a matrix and fused; the two ceilings of the card.

`filtering.matrix_is_faster` chooses between the first two by a rule that was measured on a CPU;
the record says what it loses here. The fused filter is chosen by an option alone, and must be the
same function. No kernel can copy or multiply faster than the ceilings.
"""

from collections.abc import Iterator
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from convnorm import filtering, functional, fused_filter
from device_checks.numerics import relative_error, tf32
from device_checks.part import Case, Finding, Setup
from speed.clock import median_milliseconds, replayed

CHANNELS = 64
LARGEST_MATRIX = 18  # pixels: the matrices of 64 maps of 34 x 34 pixels take 342 MB
# Name of a product -> dtype of the factors, and whether they are rounded to TF32.
PRODUCTS = {
    "bfloat16": (torch.bfloat16, False),
    "tf32": (torch.float32, True),
    "float32": (torch.float32, False),
}
# How the fused filter rounds factors -> dtype of its maps and its largest relative error.
FUSED = {
    "ieee": (torch.float32, 1e-5),
    "tf32x3": (torch.float32, 1e-5),
    "tf32": (torch.bfloat16, 5e-3),
}


def cases(setup: Setup) -> Iterator[tuple[str, Case]]:
    """The ceilings, then grids of all sizes in three sizes of batches."""
    yield "ceiling of copies", partial(copies, setup)
    for name in PRODUCTS:
        yield f"ceiling of {name} products", partial(products, name, setup)
    sizes, batches = ((6,), (4,)) if setup.tiny else ((4, 6, 8, 10, 16, 18, 32, 34), (64, 128, 512))
    for batch in batches:
        for size in sizes:
            yield f"batch {batch}, {size} x {size}", partial(both_ways, batch, size, setup)
    # Last, as the kernel is compiled anew for each. Blocks of 16 and of 32; an odd ring.
    for ring in ((6, 5),) if setup.tiny else ((32, 32), (17, 10), (34, 34)):
        for rounding in FUSED:
            name = f"fused, {ring[0]} x {ring[1]}, {rounding}"
            yield name, partial(fused_against_fft, ring, rounding, setup)


def both_ways(batch: int, size: int, setup: Setup) -> Finding:
    """Forward and backward, all outputs kept."""
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, device=setup.device)
    gain = functional.spectral_gain(weight, (size, size))
    x = torch.randn(batch, CHANNELS, size, size, device=setup.device).requires_grad_()
    ways = {"fft": False, "matrix": True} if size <= LARGEST_MATRIX else {"fft": False}
    times = {}
    for name, by_matrix in ways.items():
        with mock.patch.object(filtering, "matrix_is_faster", return_value=by_matrix):
            run = replayed(partial(_filtered, x, gain), setup.device)
            times[name] = median_milliseconds(run, setup.calls, setup.device)
    chosen = "matrix" if filtering.matrix_is_faster(size**2, batch, setup.device.type) else "fft"
    loss = times[chosen] / min(times.values())
    found = ", ".join(f"{name} {time:.3f} ms" for name, time in times.items())
    line = f"{chosen} is chosen, {loss:.2f} times the faster one; {found} on {setup.card}"
    return Finding(line, {"ms": times, "chosen": chosen, "chosen / faster": loss})


def _filtered(x: Tensor, gain: Tensor) -> None:
    y = functional.circular_filter(x, gain)
    torch.autograd.grad(y, x, torch.ones_like(y))


def fused_against_fft(ring: tuple[int, int], rounding: str, setup: Setup) -> Finding:
    """The relative errors of output and gradient to the FFT in float64, and the times of both.

    Both times are of forward and backward passes that keep all outputs, the FFT's with its casts.
    """
    precision, limit = FUSED[rounding]
    torch.manual_seed(0)
    weight = torch.randn(CHANNELS, 8, 3, 3, dtype=torch.float64)
    exact_gain = functional.spectral_gain(weight, ring)
    x = torch.randn(2 if setup.tiny else 128, CHANNELS, *ring).to(precision)
    exact = _filter_and_gradient(x.double(), exact_gain)
    x, gain = x.to(setup.device), exact_gain.float().to(setup.device)
    chosen = {**fused_filter.PRODUCTS, precision: rounding}
    with (
        mock.patch.object(fused_filter, "PRODUCTS", chosen),
        mock.patch.object(filtering, "matrix_is_faster", return_value=False),
    ):
        found = _filter_and_gradient(x, gain, fused=True)
        errors = [relative_error(a, b) for a, b in zip(found, exact, strict=True)]
        times = {}
        for name in ("fft", "fused"):
            run = partial(_filter_and_gradient, x, gain, fused=name == "fused")
            times[name] = median_milliseconds(
                replayed(run, setup.device), setup.calls, setup.device
            )
    right = all(error < limit for error in errors)  # a NaN is no less
    wrong = () if right else (f"{rounding}: {max(errors):.1e}, allowed is {limit:.0e}",)
    ratio = times["fft"] / times["fused"]
    line = f"{ratio:.2f} times as fast as the FFT's {times['fft']:.3f} ms on {setup.card}"
    numbers = {"errors": errors, "ms": times, "fft / fused": ratio}
    return Finding(f"relative error {max(errors):.0e}, {line}", numbers, wrong)


def _filter_and_gradient(x: Tensor, gain: Tensor, fused: bool = False) -> tuple[Tensor, Tensor]:
    """Of a direction that is the output itself."""
    x = x.detach().requires_grad_()
    y = functional.circular_filter(x, gain, fused=fused)
    return y, *torch.autograd.grad(y, x, y.detach())


def copies(setup: Setup) -> Finding:
    """Bytes read and written a second by a copy on the device."""
    source = torch.zeros(2**16 if setup.tiny else 2**30, dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(source)
    copy = partial(target.copy_, source)
    milliseconds = median_milliseconds(copy, setup.calls, setup.device)
    rate = 2 * source.numel() / milliseconds / 1e9
    return Finding(f"{rate:.3f} TB/s on {setup.card}", {"TB/s": rate})


def products(name: str, setup: Setup) -> Finding:
    """Floating-point operations a second in the product of two large matrices."""
    dtype, rounded = PRODUCTS[name]
    size = 64 if setup.tiny else 8192 if setup.on_gpu else 1024
    matrix = torch.randn(size, size, device=setup.device).to(dtype)
    with tf32(rounded):
        product = partial(torch.mm, matrix, matrix)
        milliseconds = median_milliseconds(product, setup.calls, setup.device)
    rate = 2 * size**3 / milliseconds / 1e9
    return Finding(f"{rate:.3f} TFLOP/s on {setup.card}", {"TFLOP/s": rate})
