"""The circular filter as one operator that reads each map once and writes it once.

It computes what `functional.circular_filter` does, without complex numbers. The functions

    cos(2 pi k (x + 1/2) / n), k = 0 ... and sin(2 pi k (x + 1/2) / n), k = 1 ...

are an orthogonal basis on a ring of n pixels, and x -> n - 1 - x maps a cosine to itself, a sine to
its negative. So a map falls into four parts, even or odd in its rows and in its columns, each with
the numbers of a quarter of the map, and each has coefficients of its own: H_cc, H_cs, H_sc, H_ss.
A gain with G(-w) = G(w) is the sum of E, even in each of its two frequencies, and O, odd in each.
E multiplies a function of the basis, and O turns cosines into sines and back as well:

    Y_cc = E H_cc - O H_ss    Y_cs = E H_cs + O H_sc
    Y_ss = E H_ss - O H_cc    Y_sc = E H_sc + O H_cs

Half of the products that whole maps would need, and no number meets one that is far away. One
program of convnorm.fused_kernel does this for a map that fits into the registers.

**It has not run on a GPU yet**, only in Triton's interpreter: nothing chooses it unasked.
"""

import os

import torch

from convnorm.tables import folded_transform

LARGEST = 128  # pixels of a side: a quarter of the map is a block of 64 x 64
# How the kernel rounds the factors of products. Those of half precision are better than the maps.
PRODUCTS = {torch.float32: "ieee", torch.bfloat16: "tf32", torch.float16: "tf32"}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # the kernel on a CPU, for tests

Window = list[int]  # start, step and number of rows, then of columns, that a map holds of its ring


def fused_filter(
    x: torch.Tensor, gain: torch.Tensor, rows: range | None = None, columns: range | None = None
) -> torch.Tensor:
    """Filter each channel on the ring of its own map, and keep some of the outputs.

    Arguments and result as those of `functional.circular_filter`, of any strides; the result is
    contiguous. Gradients of any order reach x and none the gain: ValueError for a gain that
    requires one, or is not (C, n, m // 2 + 1). On a GPU a kernel computes it where the gain is
    float32, the maps are float32, bfloat16 or float16 and have at most 128 x 128 pixels; FFTs do
    for all others and on a CPU.
    """
    n, m = x.shape[-2:]
    if tuple(gain.shape) != (x.shape[1], n, m // 2 + 1):
        raise ValueError(
            f"the gain of maps {tuple(x.shape)} must be {(x.shape[1], n, m // 2 + 1)}, "
            f"not {tuple(gain.shape)}"
        )
    if gain.requires_grad and torch.is_grad_enabled():
        raise ValueError("no gradient reaches the gain of a fused filter, which requires one")
    kept = _window(range(n) if rows is None else rows, range(m) if columns is None else columns)
    return _filter(x, gain, m, _window(range(n), range(m)), kept)


def _window(rows: range, columns: range) -> Window:
    return [rows.start, rows.step, len(rows), columns.start, columns.step, len(columns)]


# The filter is self-adjoint, so that of one window to another has the opposite one as its adjoint.
@torch.library.custom_op(
    "convnorm::fused_filter",
    mutates_args=(),
    schema="(Tensor x, Tensor gain, SymInt width, SymInt[] read, SymInt[] written) -> Tensor",
)
def _filter(
    x: torch.Tensor, gain: torch.Tensor, width: int, read: Window, written: Window
) -> torch.Tensor:
    """The maps x hold the window `read` of rings n x width, zero elsewhere; return `written`."""
    y = _allocated(x, gain, width, read, written)
    if not y.numel():
        return y
    if (
        (x.is_cuda or INTERPRETED)
        and gain.dtype == torch.float32
        and x.dtype in PRODUCTS
        and max(gain.shape[1], width) <= LARGEST
    ):
        _launch(x, y, gain, width, read, written)
    else:
        ring = x.new_zeros(*x.shape[:2], gain.shape[1], width, dtype=gain.dtype)
        ring[..., *_slices(read)] = x.to(gain.dtype)
        filtered = torch.fft.irfft2(gain * torch.fft.rfft2(ring), s=ring.shape[-2:])
        y.copy_(filtered[..., *_slices(written)])
    return y


def _slices(window: Window) -> tuple[slice, slice]:
    return tuple(
        slice(start, start + step * (count - 1) + 1, step)
        for start, step, count in (window[:3], window[3:])
    )


@_filter.register_fake
def _allocated(
    x: torch.Tensor, gain: torch.Tensor, width: int, read: Window, written: Window
) -> torch.Tensor:
    return x.new_empty(x.shape[0], x.shape[1], written[2], written[5])


def _keep_gain(ctx, inputs: tuple, output: torch.Tensor) -> None:
    _, gain, ctx.width, ctx.read, ctx.written = inputs
    ctx.save_for_backward(gain)


def _adjoint(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (gain,) = ctx.saved_tensors
    return _filter(gradient, gain, ctx.width, ctx.written, ctx.read), None, None, None, None


_filter.register_autograd(_adjoint, setup_context=_keep_gain)


def _launch(
    x: torch.Tensor, y: torch.Tensor, gain: torch.Tensor, width: int, read: Window, written: Window
) -> None:
    """Run the kernel, which fills y."""
    try:
        from convnorm.fused_kernel import filter_map
    except ImportError as error:
        raise RuntimeError(f"the fused filter needs triton ({error})") from error
    size = (gain.shape[1], width)
    # Blocks of products are powers of two, of 16 at least.
    row_block, column_block = (max(16, 1 << ((s + 1) // 2 - 1).bit_length()) for s in size)
    with torch.cuda.device_of(x):
        filter_map[(x.shape[0] * x.shape[1],)](
            x,
            y,
            gain.contiguous(),
            *(folded_transform(s, x.device) for s in size),
            x.shape[0],
            *size,
            *x.stride(),
            *read,
            *y.stride()[:2],
            *written,
            ROWS=row_block,
            COLUMNS=column_block,
            PRECISION=PRODUCTS[x.dtype],
            num_warps=row_block // 16,
        )
