"""Pixels from one form to another: resized, as bytes, as floats in [-1, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZED_BY = "antialiased bicubic"  # in records; another method is another data set
MAX_FLOATS = 2**24  # that are resized at a time: 64 MiB


def resize(images: Tensor, size: int, max_floats: int = MAX_FLOATS) -> Tensor:
    """Resize square images to `size` with an antialiased bicubic filter.

    Args:
        images: (N, C, H, H) uint8; returned unchanged if H is `size`.
        size: Height and width of the result in pixels.
        max_floats: How many pixels are float32 at a time, of one image at least; the result does
            not depend on it.

    Returns:
        (N, C, size, size) uint8, rounded to nearest.
    """
    if images.shape[-1] == size:
        return images
    resized = images.new_empty((*images.shape[:2], size, size))
    floats = max(images[:1].numel(), resized[:1].numel(), 1)
    chunk = max(1, max_floats // floats)
    for source, target in zip(images.split(chunk), resized.split(chunk), strict=True):
        pixels = source.float().contiguous()
        pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)
        target.copy_(pixels.round_().clamp_(0, 255))  # a bicubic filter overshoots at edges
    return resized


def from_uint8(images: Tensor, noise: Tensor | None = None) -> Tensor:
    """Turn uint8 into float32 in [-1, 1].

    noise: uniform in [0, 1), of the images' shape. With it each level u fills [u, u + 1) / 128 - 1;
        without, it is the point u / 127.5 - 1, so that 0 becomes -1 and 255 becomes 1, exactly.
    """
    if noise is None:
        return images.float() / 127.5 - 1
    # Just below 1, or rounding would now and then lift a pixel to the next level.
    return (images + noise * (1 - 2**-16)) / 128 - 1


def to_uint8(images: Tensor, *, nearest: bool = False) -> Tensor:
    """Turn floats in [-1, 1] into uint8: what `from_uint8` made of a level becomes that level.

    The level is the one whose interval [u, u + 1) / 128 - 1 holds the value, which is exact with
    noise and without. Values outside of [-1, 1] are clamped.

    nearest: take the nearest of the points u / 127.5 - 1 instead. Of a network that has learned
        them from images without noise, and that misses a point by a little to either side.
    """
    images = images.float()
    levels = (images * 127.5 + 127.5).round() if nearest else (images * 128 + 128).floor()
    return levels.clamp(0, 255).to(torch.uint8)
