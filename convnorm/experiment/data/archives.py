"""Data sets that torchvision downloads, checks and unpacks: CIFAR-10, CIFAR-100 and STL-10."""

import io
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from convnorm.experiment.data.images import Images, images_of
from convnorm.experiment.data.pixels import (
    Size,
    height_and_width,
    require_shape,
    resize,
    size_text,
)
from convnorm.experiment.data.split_names import Split
from convnorm.experiment.errors import InputError
from convnorm.experiment.memory import require_memory

if TYPE_CHECKING:
    from torchvision.datasets import VisionDataset

STL10_SIZE = 96  # pixels
# Split -> the files that it is made of. The GAN literature takes the unlabeled images too.
STL10_FILES: dict[Split, tuple[str, ...]] = {
    "train": ("train_X.bin", "unlabeled_X.bin"),
    "test": ("test_X.bin",),
}
PART = 1000  # images of STL-10 that are resized at a time


def cifar(name: str, root: Path, split: Split) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return pixels (N, 32, 32, 3), labels and classes of CIFAR-10 or CIFAR-100 (fine labels)."""
    from torchvision import datasets  # imported here: slow, and few runs need it

    dataset_class = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    dataset = _downloaded(dataset_class, root, train=split == "train")
    return dataset.data, np.array(dataset.targets), tuple(dataset.classes)


def stl10(root: Path, split: Split, size: Size | None) -> Images:
    """Read STL-10: 105,000 images to train, the labeled and the unlabeled ones, and 8,000 to test.

    All are in one class, as most have no label. They are read from mapped files and resized part by
    part, so that the 2.8 GB of 96x96 pixels are never in memory at once unless they are asked for.

    Raises:
        InputError: The archive is missing or damaged and cannot be downloaded, or memory is short.
    """
    from torchvision.datasets import STL10

    size = STL10_SIZE if size is None else size
    where = f"stl10 ({split}) in {root}"
    require_shape(STL10_SIZE, STL10_SIZE, size, f"{where}: each image is")
    _downloaded(STL10, root, split="test")
    files = [
        np.memmap(root / STL10.base_folder / name, np.uint8, "r").reshape(-1, 3, *[STL10_SIZE] * 2)
        for name in STL10_FILES[split]
    ]
    num, sides = sum(map(len, files)), height_and_width(size)
    require_memory(3 * num * sides[0] * sides[1], f"{where}: {num} images of {size_text(size)}")
    images, done = torch.empty(num, 3, *sides, dtype=torch.uint8), 0
    with tqdm(total=num, desc="reading images", disable=None, leave=False) as bar:
        for file in files:
            for first in range(0, len(file), PART):
                # By columns in the file. A copy, as a mapped file cannot be written to.
                pixels = torch.from_numpy(file[first : first + PART].copy()).mT
                images[done : done + len(pixels)] = resize(pixels, size)
                done += len(pixels)
                bar.update(len(pixels))
    labels = np.zeros(num, np.int64)
    return images_of(images, labels, ("all",), (STL10_SIZE, STL10_SIZE), where)


def _downloaded(dataset_class: type, root: Path, **which: object) -> "VisionDataset":
    """Open a data set of torchvision, which checks every MD5; download it where it is missing."""
    from torchvision.datasets.utils import check_integrity

    archive = root / dataset_class.filename

    def is_sound() -> bool:
        return check_integrity(archive, dataset_class.tgz_md5)

    if not (root / dataset_class.base_folder).exists() and not is_sound():
        print(f"downloading {dataset_class.url} to {root}", file=sys.stderr)
    out = sys.stderr if sys.stderr.isatty() else io.StringIO()  # for torchvision's progress bar
    try:
        # NumPy 2.4.0 to 2.4.4 warn of pickles this old, Python 3.12 of how archives are unpacked.
        with warnings.catch_warnings(action="ignore"), redirect_stdout(out), redirect_stderr(out):
            return dataset_class(root, download=True, **which)
    except (OSError, RuntimeError, HTTPException) as error:
        if is_sound():
            raise InputError(f"{archive}: cannot be unpacked ({error})") from error
        state = "damaged" if archive.exists() else "missing"
        raise InputError(
            f"{archive} is {state} and the download failed ({error!r}): put that file "
            "there, or give --data.name npz --data.root FILE or --data.name folder "
            "--data.root FOLDER"
        ) from error
