"""Drops of water and splashes of mud, drawn as OpenCV draws them."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from classification.corruptions.colours import colour
from classification.corruptions.noise import draw
from classification.corruptions.sampling import filtered, mirrored, repeated, smoothed, whole

WATER = (175, 238, 238)
MUD = (63, 42, 20)
EDGES = (50, 150)  # sums of both slopes that an edge has beside a stronger one, and by itself
FAR = 20.0  # pixels, beyond which no distance is told
TAN = 2**0.5 - 1  # of 22.5 degrees
# A step's rows, columns and length: OpenCV's DIST_L2 with a mask of 5 x 5.
STEPS = [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 1.4), (1, -1, 1.4)]
STEPS += [(1, 2, 2.1969), (2, 1, 2.1969), (2, -1, 2.1969), (1, -2, 2.1969)]
RELIEF = torch.tensor([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]).double()
BOX = torch.full((3, 3), 1 / 9, dtype=torch.float64)


def spatter(x: Tensor, constant: tuple[float, ...], generators: Iterable[Generator]) -> Tensor:
    """Add drops of water, which shine, or cover with mud, where smooth noise is high.

    An image without a drop stays as it is, where the original divides by 0.
    """
    mean, scale, sigma, threshold, strength, is_mud = constant
    noise = draw(x.new_empty(len(x), 1, *x.shape[-2:]), Tensor.normal_, generators)
    liquid = smoothed(mean + scale * noise, sigma)
    if is_mud:
        cover = smoothed((liquid > threshold).double(), strength)
        cover = cover.where(cover >= 0.8, 0)
        return x * (1 - cover) + colour(MUD, x.shape[1]) * cover
    levels = whole(liquid.where(liquid >= threshold, 0))
    light = levels * _relief(levels)
    brightest = light.amax((1, 2, 3), keepdim=True).clamp(min=1)  # the levels are whole
    return x + strength * light / brightest * colour(WATER, x.shape[1])


def _relief(levels: Tensor) -> Tensor:
    """Return how a light from above on the left falls on drops (N, 1, H, W): levels."""
    distances = _distances(edges(levels, *EDGES))
    distances = (filtered(distances, BOX, mirrored) + 1e-6).floor()
    lit = filtered(equalized(distances), RELIEF, mirrored).clamp(0, 255)
    return filtered(lit, BOX, mirrored).round()


def edges(levels: Tensor, low: float, high: float) -> Tensor:
    """Return the edges (N, 1, H, W) bool of Canny's detector, as cv2.Canny with a 3x3 Sobel filter.

    A pixel is on an edge if its slope is over `low` and larger than that of its neighbours up and
    down the slope, and if such pixels link it with one whose slope is over `high`.
    """
    smooth, slope = torch.tensor([1.0, 2, 1]).double(), torch.tensor([-1.0, 0, 1]).double()
    across = filtered(levels, torch.outer(smooth, slope), repeated)
    down = filtered(levels, torch.outer(slope, smooth), repeated)
    size = across.abs() + down.abs()
    is_flat, is_steep = (
        one.abs() < TAN * other.abs() for one, other in ((down, across), (across, down))
    )
    falls = across * down < 0
    left, right = _shifted(size, 0, -1), _shifted(size, 0, 1)
    above, below = _shifted(size, -1, 0), _shifted(size, 1, 0)
    before = torch.where(falls, _shifted(size, -1, 1), _shifted(size, -1, -1))
    after = torch.where(falls, _shifted(size, 1, -1), _shifted(size, 1, 1))
    is_ridge = torch.where(
        is_flat,
        (size > left) & (size >= right),
        torch.where(is_steep, (size > above) & (size >= below), (size > before) & (size > after)),
    )
    candidates = is_ridge & (size > low)
    found = candidates & (size > high)
    while True:
        linked = candidates & (F.max_pool2d(found.double(), 3, 1, 1) > 0)
        if torch.equal(linked, found):
            return found
        found = linked


def _distances(marked: Tensor) -> Tensor:
    """Return how far each pixel is from a marked one, in OpenCV's steps and at most `FAR`."""
    distances = torch.where(marked, 0.0, FAR).double()
    while True:
        shorter = distances
        for row, column, length in STEPS:
            for sign in (-1, 1):
                there = _shifted(distances, sign * row, sign * column, outside=FAR)
                shorter = torch.minimum(shorter, there + length)
        if torch.equal(shorter, distances):
            return distances
        distances = shorter


def equalized(levels: Tensor) -> Tensor:
    """Spread the levels of each image (N, 1, H, W), as cv2.equalizeHist; one level alone stays."""
    flat = levels.flatten(1)
    ordered = flat.sort(dim=1).values
    ranks = torch.searchsorted(ordered, flat, right=True)  # how many are not above each
    lowest = torch.searchsorted(ordered, ordered[:, :1].contiguous(), right=True)
    others = flat.shape[1] - lowest
    spread = ((ranks - lowest) * (255 / others.clamp(min=1))).round()
    return torch.where(others > 0, spread, flat).view_as(levels)


def _shifted(x: Tensor, rows: int, columns: int, outside: float = 0) -> Tensor:
    """Return what stands so many rows below and columns on the right of every pixel."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (2, 2, 2, 2), value=outside)
    return padded[..., 2 + rows : 2 + rows + height, 2 + columns : 2 + columns + width]
