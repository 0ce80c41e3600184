"""An encoded image becomes bytes of a size: its middle, resized by Pillow's Lanczos filter.

So does StyleGAN's dataset_tool.py with --transform=center-crop. The filter is antialiased. Another
one makes another data set, whose FID to this one is not 0.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from convnorm.experiment.data.picture import decoded
from convnorm.experiment.data.preparing.parts import Part
from convnorm.experiment.errors import InputError

MADE_BY = "center crop, Lanczos"


class Cropped(NamedTuple):
    """pixels: (C, height, width) uint8. native: height and width of the middle, not yet resized."""

    pixels: np.ndarray
    native: tuple[int, int]


def cropped(pixels: np.ndarray, sides: tuple[int, int]) -> Cropped:
    """Cut the largest area in the shape of `sides` out of the middle, and resize it to them.

    pixels: (H, W, C) uint8. sides: height and width. What is cut out has whole pixels, so its shape
    may be off by less than one.
    """
    height, width, channels = pixels.shape
    high, wide = (
        min(height, width * sides[0] // sides[1]),
        min(width, height * sides[1] // sides[0]),
    )
    high, wide = max(1, high), max(1, wide)
    top, left = (height - high) // 2, (width - wide) // 2
    middle = np.ascontiguousarray(pixels[top : top + high, left : left + wide])
    if (high, wide) != sides:
        image = Image.fromarray(middle[..., 0] if channels == 1 else middle)
        middle = np.asarray(image.resize(sides[::-1], Image.Resampling.LANCZOS))
    return Cropped(middle.reshape(*sides, channels).transpose(2, 0, 1), (high, wide))


def prepared(part: Part, sides: tuple[int, int]) -> list[Cropped | str]:
    """Return every image of a part, or what is wrong with it."""
    found: list[Cropped | str] = []
    for name, content in part.contents():
        try:
            if isinstance(content, InputError):
                raise content
            found.append(cropped(decoded(content, name), sides))
        except InputError as error:
            found.append(str(error))
    return found
