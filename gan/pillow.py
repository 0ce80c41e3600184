"""Images resized as Pillow resizes them, which is what recipes of published scores say.

The suite's own `resize` rounds once, at the end; Pillow rounds and clamps after each direction, so
that they are up to 7 of 256 levels apart. Scores of digits are by the suite's own.
"""

from torch import Tensor
from torch.nn import functional


def rgb_of_size(images: Tensor, size: int, interpolation: str = "bicubic") -> Tensor:
    """Return (N, 1 or 3, H, W) uint8 as (N, 3, size, size) uint8, on the CPU.

    Antialiased, on bytes: equal to Pillow's. On the CPU, so that a GPU sees the same.

    interpolation: bicubic or bilinear.
    """
    images = images.cpu().expand(-1, 3, -1, -1)
    if images.shape[-2:] == (size, size):
        return images
    return functional.interpolate(images, (size, size), mode=interpolation, antialias=True)
