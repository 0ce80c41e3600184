"""What files and geometry do to an image: fewer pixels, JPEG, and elastic sheets."""

import io
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from classification.corruptions.noise import draw
from classification.corruptions.sampling import mirrored, reflected, sampled, smoothed


def pixelate(x: Tensor, factor: float, generators: Iterable) -> Tensor:
    """Make the image smaller and larger again with Pillow's box filter."""

    def change(image: Image.Image) -> Image.Image:
        width, height = image.size
        small = image.resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
        return small.resize((width, height), Image.Resampling.BOX)

    return _by_pillow(x, change)


def jpeg_compression(x: Tensor, quality: int, generators: Iterable) -> Tensor:
    """Write and read a JPEG through Pillow; other versions of it may differ by some levels."""

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(x, change)


def _by_pillow(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    changed = torch.empty_like(x)
    for source, target in zip((x * 255).to(torch.uint8).permute(0, 2, 3, 1), changed, strict=True):
        pixels = source.numpy() if x.shape[1] == 3 else source[..., 0].numpy()
        result = np.atleast_3d(np.asarray(change(Image.fromarray(pixels)), np.float64))
        target.copy_(torch.from_numpy(result).permute(2, 0, 1))
    return changed / 255


def elastic_transform(
    x: Tensor, constant: tuple[float, float, float], generators: Iterable[Generator]
) -> Tensor:
    """Move three points of the image, which is an affine map, and then every pixel.

    The pixels' displacements are uniform numbers, smoothed and scaled. Both times the image is read
    bilinearly; OpenCV, by which the original does the first, rounds positions to 1/32 pixel.
    """
    height, width = x.shape[-2:]
    strength, sigma, shift = (share * min(height, width) for share in constant)
    own = list(generators)
    shifts = shift * _signed(x.new_empty(len(x), 3, 2), own)
    rows, columns = torch.arange(height).double()[:, None], torch.arange(width).double()
    across, down = _affine(height, width, shifts)
    warped = sampled(x, _at(down, rows, columns), _at(across, rows, columns), mirrored)
    if strength == 0:
        return warped
    fields = _signed(x.new_empty(len(x), 2, height, width), own)
    right, below = (strength * smoothed(fields, sigma, reflected, truncate=3)).unbind(1)
    return sampled(warped, rows + below, columns + right, reflected)


def _affine(height: int, width: int, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the column and the row where each point of the result comes from.

    shifts: (N, 3, 2), by how much the map moves the three points around the middle, column first.
    Both results are (N, 3): factors of the column, of the row, and a summand.
    """
    side = min(height, width) // 3
    middle = shifts.new_tensor([width // 2, height // 2])
    points = middle + side * shifts.new_tensor([[1, 1], [1, -1], [-1, -1]])
    moved = torch.cat([points + shifts, torch.ones_like(shifts[..., :1])], dim=2)
    return torch.linalg.solve(moved, points.expand_as(shifts)).unbind(2)


def _at(factors: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return (N, H, W): an affine function (N, 3) at the rows (H, 1) and the columns (W,)."""
    of_column, of_row, summand = factors[..., None, None].unbind(1)
    return of_column * columns + of_row * rows + summand


def _signed(x: Tensor, generators: Iterable[Generator]) -> Tensor:
    """Uniform numbers in [-1, 1] of the shape of `x`."""
    return 2 * draw(x, Tensor.uniform_, generators) - 1
