"""The reader of the official files of CIFAR-10-C and CIFAR-100-C."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from classification.corruptions.constants import SEVERITIES
from convnorm.experiment.data import Images
from convnorm.experiment.errors import InputError


def load_official(folder: Path, name: str, test: Images) -> Tensor:
    """Open `folder`/`name`.npy of the official CIFAR-10-C or CIFAR-100-C without reading it.

    The file holds the N test images at severity 1, then at severity 2, and so on:
    (5N, H, W, C) uint8. `labels.npy` beside it holds the 5N labels.

    Args:
        folder: Where the files are.
        name: The corruption, also one that is not in `CORRUPTIONS`, such as "rain".
        test: All clean test images, whose number, size and labels the files must have.

    Returns:
        (5, N, C, H, W) uint8, mapped from the file: index by severity - 1, then by image.

    Raises:
        InputError: A file is missing, truncated or of another shape or type, or the labels differ.
    """
    number, channels, height, width = test.images.shape
    total = len(SEVERITIES) * number
    labels = _open(folder / "labels.npy", np.integer, (total,))
    wrong = (labels.reshape(len(SEVERITIES), number) != test.labels.cpu().numpy()).sum()
    if wrong:
        raise InputError(
            f"{folder / 'labels.npy'}: {wrong} of {total} labels differ from those of the test "
            f"images, expected the {number} test labels {len(SEVERITIES)} times in their order"
        )
    images = _open(folder / f"{name}.npy", np.uint8, (total, height, width, channels))
    return torch.from_numpy(images).unflatten(0, (len(SEVERITIES), number)).permute(0, 1, 4, 2, 3)


def _open(file: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    """Map a .npy file into memory; mode "c" because torch warns of read-only arrays."""
    expected = f"expected {dtype.__name__} {shape}"
    if file.exists() and not file.is_file():
        raise InputError(f"{file}: not a file, {expected}")
    try:
        array = np.lib.format.open_memmap(file, mode="c")
    except FileNotFoundError as error:
        raise InputError(f"{file}: missing, {expected}") from error
    except Exception as error:  # what is raised depends on the damage
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: cannot be read ({reason:.100}), {expected}") from error
    if not np.issubdtype(array.dtype, dtype) or array.shape != shape:
        raise InputError(f"{file}: got {array.dtype} {array.shape}, {expected}")
    return array
