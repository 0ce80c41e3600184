"""Reads image files, each resized before the next."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from convnorm.experiment.data.picture import read_picture
from convnorm.experiment.data.pixels import Size, require_shape, resize, size_of, size_text
from convnorm.experiment.errors import InputError
from convnorm.experiment.memory import require_memory


def read_into_memory(paths: Sequence[Path], size: Size | None) -> tuple[Tensor, tuple[Size, Size]]:
    """Read image files: (N, C, H, W) uint8, C 1 if all are gray.

    Also returns the smallest and the largest size before they are resized.
    """
    images, sizes = torch.empty(0), set()
    read = tqdm(each(paths, size), "reading images", len(paths), disable=None, leave=False)
    for index, (image, native) in enumerate(read):
        if index == 0 or len(image) > images.shape[1]:
            images = _room(images[:index], len(paths), image, paths[0].parent)
        images[index] = torch.from_numpy(image)
        sizes.add(native)
    return images, (size_of(*min(sizes)), size_of(*max(sizes)))


def each(paths: Sequence[Path], size: Size | None) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Give every image (C, H, W) uint8 and its height and width before it was resized.

    size: see `folder.read_folder`, as for what is refused.
    """
    first = None
    for path in paths:
        pixels = read_picture(path)
        native = pixels.shape[:2]
        require_shape(*native, size, f"{path}: is")
        first = first or native
        if size is None and native != first:
            raise InputError(
                f"{path}: {size_text(native)} pixels, expected {size_text(first)} as in "
                f"{paths[0].name}"
            )
        image = pixels.transpose(2, 0, 1).copy()
        if size is not None:
            image = resize(torch.from_numpy(image[None]), size)[0].numpy()
        yield image, native


def _room(before: Tensor, num: int, image: np.ndarray, folder: Path) -> Tensor:
    """Return room for `num` images like one (C, H, W); gray ones of before fill all channels."""
    size = size_text(size_of(*image.shape[1:]))
    require_memory(num * image.size, f"{folder}: {num} images of {size} pixels")
    images = torch.empty(num, *image.shape, dtype=torch.uint8)
    if len(before):
        images[: len(before)] = before
    return images
