"""Images read between and beyond their pixels: borders, filters, zooms and warps."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# (whole positions of any sign, size) -> the pixels in [0, size) that stand there.
Border = Callable[[Tensor, int], Tensor]


def repeated(positions: Tensor, size: int) -> Tensor:
    """Repeat the edge: a a | a b c | c c."""
    return positions.clamp(0, size - 1)


def mirrored(positions: Tensor, size: int) -> Tensor:
    """Mirror without repeating the edge: c b | a b c | b a; `size` at least 2."""
    there = positions.remainder(2 * size - 2)
    return torch.minimum(there, 2 * size - 2 - there)


def reflected(positions: Tensor, size: int) -> Tensor:
    """Mirror and repeat the edge: b a | a b c | c b."""
    there = positions.remainder(2 * size)
    return torch.minimum(there, 2 * size - 1 - there)


def whole(x: Tensor) -> Tensor:
    """Return values in [0, 1] as whole levels from 0 to 255, rounded down.

    Where the exact value is whole, float errors do not take a level from it.
    """
    return (x.clamp(0, 1) * 255 + 1e-6).floor()


def gaussian(offsets: Tensor, sigma: float) -> Tensor:
    """Return a Gaussian's float64 weights at `offsets`, with sum 1."""
    return torch.softmax(-(offsets.double() ** 2) / (2 * sigma**2), dim=0)


def filtered(x: Tensor, kernel: Tensor, border: Border) -> Tensor:
    """Correlate every channel of (N, C, H, W) with a (K, L) kernel, K and L odd."""
    rows, columns = (
        border(torch.arange(-(length // 2), size + length // 2), size)
        for length, size in zip(kernel.shape, x.shape[-2:], strict=True)
    )
    padded = x[..., rows, :][..., columns]
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).view_as(x)


def smoothed(x: Tensor, sigma: float, border: Border = repeated, truncate: float = 4.0) -> Tensor:
    """Filter (N, C, H, W) with a Gaussian cut off at `truncate` sigma."""
    radius = int(truncate * sigma + 0.5)
    kernel = gaussian(torch.arange(-radius, radius + 1), sigma)
    return filtered(filtered(x, kernel[None], border), kernel[:, None], border)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """Enlarge the middle of (N, C, H, W) to the whole size, as make_cifar_c.py's clipped_zoom."""
    return _zooming(x.shape[-2], factor) @ x @ _zooming(x.shape[-1], factor).T


def _zooming(size: int, factor: float) -> Tensor:
    """Return the (size, size) matrix that enlarges a line of pixels.

    Linear between the pixels of a crop, whose ends become the ends of the enlarged crop, as in
    scipy.ndimage.zoom; more than `size` of it are trimmed, on the right one more than on the left.
    """
    crop = math.ceil(size / factor)
    enlarged = round(crop * factor)
    start, trimmed = (size - crop) // 2, (enlarged - size) // 2
    positions = (torch.arange(size).double() + trimmed) * ((crop - 1) / (enlarged - 1))
    distances = (positions[:, None] - torch.arange(crop)).abs()
    return F.pad((1 - distances).clamp(min=0), (start, size - crop - start))


def sampled(x: Tensor, rows: Tensor, columns: Tensor, border: Border) -> Tensor:
    """Read (N, C, H, W) at fractional rows and columns (N, H, W), bilinearly."""
    height, width = x.shape[-2:]
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    lines = []
    for row in (top.long(), top.long() + 1):
        ends = [
            picked(x, border(row, height), border(column, width))
            for column in (left.long(), left.long() + 1)
        ]
        lines.append(ends[0] * (1 - right) + ends[1] * right)
    return lines[0] * (1 - down) + lines[1] * down


def picked(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read (N, C, H, W) at whole rows and columns within it, both (N, H, W)."""
    places = (rows * x.shape[-1] + columns).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, places).view_as(x)
