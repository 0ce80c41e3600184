"""Images as pictures that people look at: enlarged, in grids, as PNG files."""

import math
from pathlib import Path

import torch
from PIL import Image
from torchvision.utils import make_grid

from convnorm.experiment import files

LEAST = 256  # pixels: the least height and width of a grid of images


def enlarged(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Make each pixel of (..., H, W) a square of pixels, to be looked at without smoothing."""
    return images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def grid_of(images: torch.Tensor, columns: int) -> torch.Tensor:
    """Return images (N, C, H, W) uint8 row by row on gray, as one (3, H', W')."""
    return make_grid(images, nrow=columns, padding=2, pad_value=128)


def picture_of(images: torch.Tensor, columns: int | None = None) -> torch.Tensor:
    """Return images (N, C, H, W) uint8 as a grid (3, H', W'), H' and W' at least `LEAST`.

    columns: of the grid; None makes about as many as rows.
    """
    grid = grid_of(images.cpu(), columns or round(len(images) ** 0.5))
    return enlarged(grid, math.ceil(LEAST / min(grid.shape[1:])))


def save_png(path: Path, image: torch.Tensor) -> None:
    """Write an image (C, H, W) uint8 as PNG, atomically."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    files.write(path, lambda file: picture.save(file, "PNG"))
