"""Pixels from one form to another: resized, as bytes, as floats in [-1, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

from convnorm.experiment.errors import InputError

Size = int | tuple[int, int]  # pixels: the side of squares, or height and width of what is none

RESIZED_BY = "antialiased bicubic"  # in records; another method is another data set
MAX_FLOATS = 2**24  # that are resized at a time: 64 MiB


def height_and_width(size: Size) -> tuple[int, int]:
    """Return height and width of images of a size."""
    return (size, size) if isinstance(size, int) else size


def size_of(height: int, width: int) -> Size:
    """Return the size of images of this height and width."""
    return height if height == width else (height, width)


def size_text(size: Size) -> str:
    """Return a size for people, as that of a screen: width x height."""
    height, width = height_and_width(size)
    return f"{width}x{height}"


def require_shape(height: int, width: int, size: Size | None, where: object) -> None:
    """Raise an InputError unless an image becomes one of `size` without being distorted.

    size: None takes every shape. where: the start of the error, up to `is`.
    """
    wanted = None if size is None else height_and_width(size)
    if wanted is None or height * wanted[1] == width * wanted[0]:
        return
    shape = "a square" if isinstance(size, int) else f"the shape of {size_text(size)}"
    raise InputError(f"{where} {width} wide and {height} high, expected {shape}")


def resize(images: Tensor, size: Size, max_floats: int = MAX_FLOATS) -> Tensor:
    """Resize images to `size` with an antialiased bicubic filter.

    Args:
        images: (N, C, H, W) uint8; returned unchanged if they have that size.
        size: Of the result.
        max_floats: How many pixels are float32 at a time, of one image at least; the result does
            not depend on it.

    Returns:
        (N, C, height, width) uint8, rounded to nearest.
    """
    sides = height_and_width(size)
    if images.shape[2:] == sides:
        return images
    resized = images.new_empty((*images.shape[:2], *sides))
    floats = max(images[:1].numel(), resized[:1].numel(), 1)
    chunk = max(1, max_floats // floats)
    for source, target in zip(images.split(chunk), resized.split(chunk), strict=True):
        pixels = source.float().contiguous()
        pixels = F.interpolate(pixels, size=sides, mode="bicubic", antialias=True)
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
