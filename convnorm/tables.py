"""Constant tensors that a gain and a filter need again and again; each is made once and kept.

All that are kept take at most `KEPT` bytes: maps of ever new sizes let the longest unused go.
"""

import math
from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F

from convnorm.modes import is_transformed

Pair = tuple[int, int]

# Bytes. The tables of a network for images of 128 pixels take less than 10 MiB.
KEPT = 2**28

# (function, *arguments) -> what it made, the longest unused first.
_tables: dict[tuple, torch.Tensor] = {}
_captured: set[tuple] = set()  # never dropped: a captured CUDA graph goes on reading them


def _kept(build: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Keep what `build` returns for each of its arguments.

    Never an inference tensor, which autograd refuses, nor one of a transform of torch.func. And
    nothing is kept, and nothing kept is used, while a compiler traces (it fuses what it sees
    built) and under a mode such as FakeTensorMode, whose tensors do not mix with others.
    """

    @wraps(build)
    def table(*arguments) -> torch.Tensor:
        if torch.compiler.is_compiling() or type(torch.empty(0)) is not torch.Tensor:
            return build(*arguments)
        key = (build, *arguments)
        found = _tables.pop(key, None)
        if found is not None:
            _tables[key] = found  # behind all others
            if found.is_cuda and torch.cuda.is_current_stream_capturing():
                _captured.add(key)
            return found
        # Made on the CPU, whatever the default device is, and then moved.
        with torch.inference_mode(False), torch.device("cpu"):
            made = build(*arguments)
        if not is_transformed():
            _tables[key] = made
            _drop_unused()
        return made

    return table


def _drop_unused() -> None:
    """Let the longest unused tables go until the rest takes `KEPT` bytes, or one is left."""
    total = sum(table.nbytes for table in _tables.values())
    for key in [*_tables][:-1]:
        if total <= KEPT:
            break
        if key not in _captured:
            total -= _tables.pop(key).nbytes


@_kept
def offset_indicator(kernel: Pair, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """0/1 matrix that sums the entries of a Gram matrix over taps p, q by their offset q - p.

    Shape (K * K, (2 k_h - 1)(2 k_w - 1)), K = k_h * k_w taps; offset zero is in the middle.
    """
    height, width = kernel
    y = torch.arange(height).repeat_interleave(width)
    x = torch.arange(width).repeat(height)
    dy = (y[None, :] - y[:, None]) + height - 1
    dx = (x[None, :] - x[:, None]) + width - 1
    offset = (dy * (2 * width - 1) + dx).flatten()
    return F.one_hot(offset, (2 * height - 1) * (2 * width - 1)).to(device, dtype)


@_kept
def cosine_table(
    kernel: Pair, grid: Pair, dilation: Pair, stride: Pair, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """cos(w . d / s) for all offsets d of the dilated kernel and all w of the half grid.

    Shape ((2 k_h - 1)(2 k_w - 1), n * (m // 2 + 1)). Rows of offsets that the stride does not
    divide are zero: subsampling an output keeps its autocorrelation at multiples of the stride.
    """
    n, m = grid
    dy = torch.arange(-(kernel[0] - 1), kernel[0]) * dilation[0]
    dx = torch.arange(-(kernel[1] - 1), kernel[1]) * dilation[1]
    kept = (dy % stride[0] == 0)[:, None] & (dx % stride[1] == 0)[None, :]
    # Phases as exact fractions of a turn: products are reduced as integers before the division.
    turn_y = ((dy // stride[0])[:, None] * torch.arange(n) % n).double() / n
    turn_x = ((dx // stride[1])[:, None] * torch.arange(m // 2 + 1) % m).double() / m
    turns = turn_y[:, None, :, None] + turn_x[None, :, None, :]
    cosines = torch.cos(2 * math.pi * turns) * kept[:, :, None, None]
    return cosines.reshape(kept.numel(), -1).to(device, dtype)


@_kept
def folded_transform(size: int, device: torch.device) -> torch.Tensor:
    """Cosines and sines on half a ring, which its mirror image x -> size - 1 - x completes.

    Shape (2, h, h), h = (size + 1) // 2: w cos(2 pi k (x + 1/2) / size) and the sines of the same
    phases, for k and x below h; w makes the transform of the whole ring orthogonal. The first sine
    is that of k = size / 2, since sin(0) vanishes; in an odd ring, which has none, it is zero.
    """
    half = (size + 1) // 2
    k = torch.arange(half)[:, None]
    odd = 2 * torch.arange(half) + 1
    weight = torch.where(k == 0, 1.0, 2.0).double().div(size).sqrt()
    sine_k = torch.where(k == 0, size // 2, k)
    cosines = weight * torch.cos(math.pi / size * (k * odd % (2 * size)).double())
    sines = weight * torch.sin(math.pi / size * (sine_k * odd % (2 * size)).double())
    if size % 2:
        sines[0] = 0
    return torch.stack([cosines, sines]).to(device, torch.float32)


@_kept
def circulant_index(
    grid: Pair, rows: tuple[int, ...], columns: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    """Indices into a flattened impulse response (n * m) that make the filter's matrix.

    Shape (kept outputs, n * m): entry (p, q) is the offset p - q on the ring, for the outputs
    p in `rows` x `columns` and every input q of the grid.
    """
    n, m = grid
    dy = (torch.tensor(rows)[:, None] - torch.arange(n)) % n
    dx = (torch.tensor(columns)[:, None] - torch.arange(m)) % m
    index = dy[:, None, :, None] * m + dx[None, :, None, :]
    return index.reshape(len(rows) * len(columns), n * m).to(device)


def turns_at(frequencies: torch.Tensor, places: torch.Tensor, n: int) -> torch.Tensor:
    """Phases 2 pi w p / n, (frequencies, places), in float64; exact as in `cosine_table`."""
    return 2 * math.pi * (frequencies[:, None] * places % n).double() / n


def both_halves(frequencies: torch.Tensor, n: int) -> torch.Tensor:
    """How often those of a half spectrum stand in the whole of n: 2 where one lies opposite."""
    return torch.where((frequencies == 0) | (2 * frequencies == n), 1, 2)


def _complex_products(cosines: torch.Tensor, sines: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows of the real matrix that multiplies by cosines + i sines: for the real part, and for
    the imaginary part. A column each for a real part and an imaginary part, on a new last axis.
    """
    return torch.stack([cosines, -sines], -1), torch.stack([sines, cosines], -1)


@_kept
def analysis_rows(n: int, height: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """exp(-i w p), (n // 2 + 1 frequencies x real and imaginary, places p = 0 .. height - 1)."""
    turns = turns_at(torch.arange(n // 2 + 1), torch.arange(height), n)
    return torch.stack([turns.cos(), -turns.sin()], 1).flatten(0, 1).to(device, dtype)


@_kept
def analysis_columns(m: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """exp(-i w p) for complex numbers: (m x real and imaginary, real and imaginary x width)."""
    turns = turns_at(torch.arange(m), torch.arange(width), m)
    real, imaginary = _complex_products(turns.cos(), -turns.sin())
    both = torch.stack([real, imaginary], 1).transpose(2, 3)  # (m, 2, 2, width)
    return both.reshape(2 * m, 2 * width).to(device, dtype)


@_kept
def kernel_waves(
    kernel: Pair,
    ring: Pair,
    dilation: Pair,
    centre: Pair,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """exp(i w . t) for the taps t of a dilated kernel: (real and imaginary x F, k_h * k_w).

    F = (n // 2 + 1) * m frequencies, half of them along the rows. centre: the tap t = 0.
    """
    n, m = ring
    along_rows, along_columns = (
        (torch.arange(k) - c) * d for k, c, d in zip(kernel, centre, dilation, strict=True)
    )
    rows = turns_at(torch.arange(n // 2 + 1), along_rows, n)
    columns = turns_at(torch.arange(m), along_columns, m)
    turns = (rows[:, None, :, None] + columns[None, :, None, :]).reshape(-1, kernel[0] * kernel[1])
    return torch.cat([turns.cos(), turns.sin()]).to(device, dtype)


@_kept
def synthesis_columns(
    m: int, columns: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """exp(i w p) / m for complex numbers: (real and imaginary x columns p, m x the same two)."""
    turns = turns_at(torch.tensor(columns), torch.arange(m), m)
    both = torch.stack(_complex_products(turns.cos(), turns.sin()))  # (2, columns, m, 2)
    return (both / m).reshape(2 * len(columns), 2 * m).to(device, dtype)


@_kept
def synthesis_rows(
    n: int, rows: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """The real part of exp(i w p) / n over both halves: (rows p, n // 2 + 1 x the two parts)."""
    half = torch.arange(n // 2 + 1)
    turns = turns_at(torch.tensor(rows), half, n)
    real, _ = _complex_products(turns.cos(), turns.sin())
    times = both_halves(half, n)[:, None]
    return (times * real / n).flatten(1).to(device, dtype)
