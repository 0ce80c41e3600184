"""Changes of brightness, contrast and saturation, and the colours that weather brings along."""

from collections.abc import Iterable

import torch
from torch import Tensor


def brightness(x: Tensor, summand: float, generators: Iterable) -> Tensor:
    """Add to HSV's value; hue and saturation stay."""
    value, saturation, hue = _hsv(x)
    return (value + summand).clamp(max=1) * (1 - saturation * hue)


def contrast(x: Tensor, factor: float, generators: Iterable) -> Tensor:
    """Scale the distance of every value from the image's mean in its channel."""
    means = x.mean((-2, -1), keepdim=True)
    return (x - means) * factor + means


def saturate(x: Tensor, constant: tuple[float, float], generators: Iterable) -> Tensor:
    """Scale HSV's saturation and add to it; gray becomes red where something is added."""
    factor, summand = constant
    value, saturation, hue = _hsv(x)
    return value * (1 - (saturation * factor + summand).clamp(max=1) * hue)


def luma(x: Tensor) -> Tensor:
    """Return the brightness (N, 1, H, W) that OpenCV and Pillow give a colour; gray is its own."""
    if x.shape[1] == 1:
        return x
    weights = x.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (weights * x).sum(1, keepdim=True)


def colour(rgb: tuple[int, int, int], channels: int) -> Tensor:
    """Return a colour of levels as (1, C, 1, 1) in [0, 1]: its luma for gray images."""
    found = torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1) / 255
    return found if channels == 3 else luma(found)


def _hsv(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value and saturation (N, 1, H, W) and the hue: x = value * (1 - saturation * hue).

    The hue (N, C, H, W) tells how far from the largest channel (0) towards the smallest (1) each
    channel lies, which no change of value and saturation alters. Gray has the hue of red.
    """
    value = x.amax(1, keepdim=True)
    span = value - x.amin(1, keepdim=True)
    red = x.new_tensor([0, 1, 1])[: x.shape[1], None, None]
    hue = torch.where(span > 0, (value - x) / span, red)
    return value, torch.where(span > 0, span / value, 0), hue
