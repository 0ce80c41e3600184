"""Writes generated images in the formats that programs which score images read.

Files are whole or not there: they get their names when all is written. Nothing is compressed with a
loss, which scores would see. Images are (N, C, H, W) uint8 tensors, which come in batches.
"""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from convnorm.experiment import files
from convnorm.experiment.config import require
from convnorm.experiment.data.pixels import Size, height_and_width, size_of, size_text
from convnorm.experiment.errors import InputError
from convnorm.experiment.memory import require_memory
from convnorm.experiment.pictures import LEAST, enlarged, grid_of, save_png

MOST = 10_000  # images, or rows of them, in a grid
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def check_out(out: Path, num: int, is_grid: bool) -> None:
    """Raise an InputError unless nothing is at `out` and it can be what is asked for there.

    num: of images, or of rows in a grid.
    """
    suffix = out.suffix.lower()
    if is_grid:
        require(num <= MOST, "--num", num, f"1 to {MOST} in a grid")
    if is_grid and suffix != ".png":
        raise InputError(f"--out: {out} is not allowed for a grid; expected FILE.png")
    if not is_grid and suffix in PICTURES:
        raise InputError(
            f"--out: {out} is not allowed; expected a folder or FILE.npz, or --grid for one picture"
        )
    is_file = is_grid or suffix == ".npz"
    if not is_file:
        files.require_new_folder(out, "--out")
    elif os.path.lexists(out):
        raise InputError(f"--out: {out} is there already; expected a new name")
    if is_file and not out.parent.is_dir():
        raise InputError(f"--out: {out} cannot be written; expected a folder that exists")


def write_folder(batches: Iterable[Tensor], num: int, folder: Path) -> None:
    """Write PNGs 000000.png, 000001.png, ...: gray ones for one channel, RGB ones for three.

    torch-fidelity and pytorch-fid turn gray files into RGB as they read them.
    """
    with files.new_folder(folder, "--out") as unfinished:
        for index, image in enumerate(_one_by_one(batches, num)):
            pixels = image.permute(1, 2, 0).numpy()
            picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
            picture.save(unfinished / f"{index:06d}.png")


def write_npz(batches: Iterable[Tensor], num: int, size: Size, file: Path) -> None:
    """Write `arr_0` (num, H, W, 3) uint8, as ADM's evaluator reads it: gray images as RGB."""
    shape = (num, *height_and_width(size), 3)
    require_memory(math.prod(shape), f"--num: {num} images of {size_text(size)} pixels")
    pixels = np.empty(shape, np.uint8)
    for index, image in enumerate(_one_by_one(batches, num)):
        pixels[index] = image.expand(3, -1, -1).permute(1, 2, 0)
    files.write(file, lambda opened: np.savez(opened, pixels))


def write_grid(batches: Iterable[Tensor], num: int, size: Size, columns: int, file: Path) -> None:
    """Write one PNG of all images, row by row, enlarged until its sides have `LEAST` pixels."""
    rows, (height, width) = math.ceil(num / columns), height_and_width(size)
    factor = math.ceil(LEAST / min(height * rows, width * columns))
    large = size_of(factor * height, factor * width)
    # The images, and the grid of them.
    needed = 6 * rows * columns * (factor * height + 2) * (factor * width + 2)
    require_memory(needed, f"--num: a grid of {num} images of {size_text(large)} pixels")
    large = [enlarged(image, factor) for image in _one_by_one(batches, num)]
    save_png(file, grid_of(torch.stack(large), columns))


def _one_by_one(batches: Iterable[Tensor], num: int) -> Iterator[Tensor]:
    """The images (C, H, W) of batches, with a progress bar on a terminal."""
    with tqdm(total=num, unit="image", disable=None, leave=False) as bar:
        for images in batches:
            for image in images:
                yield image
                bar.update()
