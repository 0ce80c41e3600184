"""Blurs: out of focus, smooth, through glass, moved and zoomed."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from classification.corruptions.noise import draw
from classification.corruptions.sampling import (
    filtered,
    gaussian,
    mirrored,
    picked,
    smoothed,
    whole,
    zoomed,
)


def defocus_blur(x: Tensor, constant: tuple[float, float], generators: Iterable) -> Tensor:
    """Filter with an antialiased disk; borders are mirrored without repeating the edge."""
    return filtered(x, defocus_kernel(*constant), mirrored)


def defocus_kernel(radius: float, sigma: float) -> Tensor:
    """Return a disk smoothed by a 3x3 Gaussian: (K, K) float64, K odd, with sum 1."""
    edge = int(radius) + 1  # one pixel for the smoothing
    squares = torch.arange(-edge, edge + 1) ** 2
    disk = (squares + squares[:, None] <= radius**2).double()
    smooth = gaussian(torch.arange(-1, 2), sigma)
    smoothed_disk = F.conv2d(disk[None, None], torch.outer(smooth, smooth)[None, None], padding=1)
    return smoothed_disk[0, 0] / disk.sum()


def gaussian_blur(x: Tensor, sigma: float, generators: Iterable) -> Tensor:
    """Filter with a Gaussian cut off at 4 sigma; borders repeat the edge."""
    return smoothed(x, sigma)


def glass_blur(x: Tensor, constant: tuple[float, int], generators: Iterable[Generator]) -> Tensor:
    """Smooth, move pixels to their neighbours, and smooth again.

    In every round, each pixel outside of the first two rows and columns takes the value of itself
    or of its neighbour above, on the left, or both, with equal chances. The original means to swap
    the two, from the last pixel to the first. But NumPy assigns x[h, w] before it reads it, so the
    neighbour keeps its value, and no pixel is read after it was changed: what all take at once is
    what it computes.
    """
    sigma, rounds = constant
    number, _, height, width = x.shape
    inner = torch.zeros(height, width, dtype=torch.long)
    inner[2:, 2:] = 1
    chances = draw(x.new_empty(number, rounds, 2, height, width), Tensor.uniform_, generators)
    moves = (chances < 0.5) * inner
    pixels = whole(smoothed(x, sigma)) / 255
    for up, left in (move.unbind(1) for move in moves.unbind(1)):
        rows = torch.arange(height)[:, None] - up
        pixels = picked(pixels, rows, torch.arange(width) - left)
    return smoothed(pixels, sigma)


def motion_blur(x: Tensor, constant: tuple[int, float], generators: Iterable[Generator]) -> Tensor:
    """Smear along a line at a random angle of up to 45 degrees."""
    angles = 90 * draw(x[:, 0, 0, :1], Tensor.uniform_, generators) - 45
    return smeared(x, angles, *constant)


def smeared(x: Tensor, degrees: Tensor, radius: int, sigma: float) -> Tensor:
    """Average along a line at an angle (N, 1) from the right downwards, as ImageMagick.

    The line of -motion-blur begins at the pixel, its weights are one half of a Gaussian, its points
    are rounded to whole pixels, and borders repeat the edge.
    """
    number, _, height, width = x.shape
    angles = torch.deg2rad(degrees)
    distances = torch.arange(2 * radius + 1)  # (K,)
    down = (distances * angles.sin() - 0.5).ceil().long()  # (N, K)
    right = (distances * angles.cos() - 0.5).ceil().long()
    rows = (torch.arange(height) + down[..., None]).clamp(0, height - 1)  # (N, K, H)
    columns = (torch.arange(width) + right[..., None]).clamp(0, width - 1)  # (N, K, W)
    pixels = x.permute(0, 2, 3, 1).contiguous()
    each = torch.arange(number)[:, None, None]
    blurred = torch.zeros_like(pixels)
    for k, weight in enumerate(gaussian(distances, sigma).tolist()):
        blurred += weight * pixels[each, rows[:, k, :, None], columns[:, k, None, :]]
    return blurred.permute(0, 3, 1, 2)


def zoom_blur(x: Tensor, end: float, generators: Iterable) -> Tensor:
    """Average the image with itself enlarged 1, 1.01, 1.02 ... times.

    The factors are NumPy's as in the original. Exact ones would be others: at 1.25 a crop is
    enlarged to 32.5 pixels, and the rounding of the factor decides whether that is 32 or 33.
    """
    factors = np.arange(1, end, 0.01).tolist()
    return (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)
