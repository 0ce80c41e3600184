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


def to_uint8(images: Tensor) -> Tensor:
    """Turn floats in [-1, 1] into uint8, rounded to nearest; values outside are clamped."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """Turn uint8 into float32 in [-1, 1]: 0 becomes -1 and 255 becomes 1, exactly."""
    return images.float() / 127.5 - 1
