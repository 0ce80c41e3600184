"""Constant tensors that a gain and a filter need again and again; each is made once and kept."""

import math
from collections.abc import Callable
from functools import lru_cache, wraps

import torch
import torch.nn.functional as F

Pair = tuple[int, int]


def _kept(build: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Keep what `build` returns, but never an inference tensor, which autograd refuses.

    Nothing is kept, and nothing kept is used, while a compiler traces (it fuses what it sees
    built) and under a mode such as FakeTensorMode, whose tensors do not mix with others.
    """
    cached = lru_cache(maxsize=256)(torch.inference_mode(False)(build))

    @wraps(build)
    def table(*key) -> torch.Tensor:
        if torch.compiler.is_compiling() or type(torch.empty(0)) is not torch.Tensor:
            return build(*key)
        return cached(*key)

    return table


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
