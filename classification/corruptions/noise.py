"""Noise on every value. Numbers are drawn from a generator for each image.

Each corruption of this package takes x (N, C, H, W) float64 in [0, 1], its constant and N
generators, and returns the corrupted x, which `corrupt` clamps and rounds.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Generator, Tensor


def draw(x: Tensor, sample: Callable[..., Tensor], generators: Iterable[Generator]) -> Tensor:
    """Return random numbers of the shape of `x`, every image's from its own generator."""
    numbers = torch.empty_like(x)
    for image, own in zip(numbers, generators, strict=True):
        sample(image, generator=own)
    return numbers


def gaussian_noise(x: Tensor, scale: float, generators: Iterable[Generator]) -> Tensor:
    """Add a normal number to every value."""
    return x + scale * draw(x, Tensor.normal_, generators)


def shot_noise(x: Tensor, photons: float, generators: Iterable[Generator]) -> Tensor:
    """Count photons: a Poisson number of them for every value."""
    rates = zip(x * photons, generators, strict=True)
    return torch.stack([torch.poisson(rate, generator=own) for rate, own in rates]) / photons


def impulse_noise(x: Tensor, amount: float, generators: Iterable[Generator]) -> Tensor:
    """Replace a fraction of the values, each by 0 or by 1 with equal chances."""
    chance = draw(x, Tensor.uniform_, generators)
    return x.masked_fill(chance < amount / 2, 0).masked_fill(chance >= 1 - amount / 2, 1)


def speckle_noise(x: Tensor, scale: float, generators: Iterable[Generator]) -> Tensor:
    """Add a normal number times the value to every value."""
    return x + x * scale * draw(x, Tensor.normal_, generators)
