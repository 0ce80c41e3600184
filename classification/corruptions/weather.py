"""Snow, frost and fog."""

from collections.abc import Iterable

import torch
from torch import Generator, Tensor

from classification.corruptions.blur import smeared
from classification.corruptions.colours import colour, luma
from classification.corruptions.noise import draw
from classification.corruptions.sampling import whole, zoomed

# Of our frost: its colour where it is thickest, and how smooth it is, as of the plasma fractal.
ICE = (215, 235, 255)
ICE_DECAY = 1.5


def snow(x: Tensor, constant: tuple[float, ...], generators: Iterable[Generator]) -> Tensor:
    """Whiten the image, and add flakes that fall, and the same turned by 180 degrees."""
    mean, scale, zoom, threshold, radius, sigma, kept = constant
    own = list(generators)
    flakes = draw(x.new_empty(len(x), 1, *x.shape[-2:]), Tensor.normal_, own)
    flakes = zoomed(mean + scale * flakes, zoom)
    flakes = whole(flakes.where(flakes >= threshold, 0)) / 255
    angles = 90 * draw(x[:, 0, 0, :1], Tensor.uniform_, own) - 135
    streaks = smeared(flakes, angles, radius, sigma)
    white = kept * x + (1 - kept) * torch.maximum(x, 1.5 * luma(x) + 0.5)
    return white + streaks + streaks.flip(-2, -1)


def frost(x: Tensor, constant: tuple[float, float], generators: Iterable[Generator]) -> Tensor:
    """Darken the image, and add ice: a procedural texture, not the official frost.

    The original adds crops of photographs of frost, which are not ours to ship. The constants are
    the original's; the texture is our own: ridges of a plasma fractal, bluish.
    """
    kept, added = constant
    ice = 1 - (2 * plasma(_wobbles(x, generators), ICE_DECAY) - 1).abs()
    height, width = x.shape[-2:]
    return kept * x + added * colour(ICE, x.shape[1]) * ice[:, None, :height, :width]


def fog(x: Tensor, constant: tuple[float, float], generators: Iterable[Generator]) -> Tensor:
    """Add a plasma fractal, and darken until the brightest value can be what it was."""
    strength, decay = constant
    height, width = x.shape[-2:]
    mist = plasma(_wobbles(x, generators), decay)[:, None, :height, :width]
    brightest = x.amax((1, 2, 3), keepdim=True)
    return (x + strength * mist) * brightest / (brightest + strength)


def plasma(wobbles: Tensor, decay: float) -> Tensor:
    """Return fractals by the diamond-square algorithm on a torus, each from 0 to 1.

    From the one known point on, the middles of squares, then of diamonds, get the mean of their
    four corners and a wobble, whose size goes down by `decay`^2 whenever the step is halved.

    Args:
        wobbles: (N, S, S) uniform in [-1, 1], S a power of two and at least 2: each point's own.
        decay: Over 0; the larger, the smoother.

    Returns:
        (N, S, S).
    """
    heights = torch.zeros_like(wobbles)
    step, size = wobbles.shape[-1], 100.0
    while step >= 2:
        half = step // 2
        corners, centres = heights[:, ::step, ::step], heights[:, half::step, half::step]
        across, down = corners + corners.roll(-1, 2), corners + corners.roll(-1, 1)
        wobble = size**2 * wobbles
        centres[:] = (across + across.roll(-1, 1)) / 4 + wobble[:, half::step, half::step]
        above = (across + centres + centres.roll(1, 1)) / 4
        beside = (down + centres + centres.roll(1, 2)) / 4
        heights[:, ::step, half::step] = above + wobble[:, ::step, half::step]
        heights[:, half::step, ::step] = beside + wobble[:, half::step, ::step]
        step, size = half, size / decay
    heights -= heights.amin((1, 2), keepdim=True)
    return heights / heights.amax((1, 2), keepdim=True)


def _wobbles(x: Tensor, generators: Iterable[Generator]) -> Tensor:
    """Return a number in [-1, 1] for every point of the smallest power of two that holds `x`."""
    size = 1 << (max(x.shape[-2:]) - 1).bit_length()
    return 2 * draw(x.new_empty(len(x), size, size), Tensor.uniform_, generators) - 1
