"""Reads real images, wherever they are, into one uint8 tensor.

Whole data sets of small images fit into memory, on an accelerator too, so that nothing is decoded
or copied while training runs. `convnorm.experiment.run.batches` draws minibatches from the tensor.
"""

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np

from convnorm.experiment.data.archives import cifar, stl10
from convnorm.experiment.data.folder import read_folder, split_folder
from convnorm.experiment.data.images import Images, NoSplit, from_array
from convnorm.experiment.data.npz import read_npz
from convnorm.experiment.data.npz_files import npz_file
from convnorm.experiment.data.pixels import Size
from convnorm.experiment.data.split_names import Split
from convnorm.experiment.errors import InputError, shortened
from convnorm.experiment.paths import user_path

Name = Literal["digits", "cifar10", "cifar100", "stl10", "folder", "npz"]
Arrays = tuple[np.ndarray, np.ndarray, tuple[str, ...]]  # pixels (N, H, W, C), labels, classes


@dataclass(frozen=True)
class DataConfig:
    """Which real images, and how large.

    Args:
        name: digits (of scikit-learn), cifar10, cifar100, stl10 (downloaded once), folder or npz
            (yours).
        root: The folder for downloaded archives; for folder and npz the folder or file itself.
        image_size: In pixels, the side of squares or [height, width]; images of another size are
            resized to it, those of another shape refused.
    """

    MAX_SIZE: ClassVar = 1024

    name: Name = "cifar10"
    root: str = "data"
    image_size: int | tuple[int, int] = 32

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            choices = ", ".join(get_args(Name))
            raise InputError(f"data.name: got {self.name!r}, expected one of {choices}")
        if not self.root:
            raise InputError(f"data.root: got {self.root!r}, expected a folder or a file")
        self._check_size()

    def _check_size(self) -> None:
        size = self.image_size
        sides = size if isinstance(size, tuple) else (size,)
        given = list(size) if isinstance(size, tuple) else size
        if not all(type(side) is int and 1 <= side <= self.MAX_SIZE for side in sides):
            raise InputError(
                f"data.image_size: got {given!r}, expected an integer from 1 to {self.MAX_SIZE}, "
                "or two of them, (height, width)"
            )
        if len(sides) == 2 and sides[0] == sides[1]:
            raise InputError(f"data.image_size: got {given!r}, expected {sides[0]}, of a square")

    def at(self, root: str) -> "DataConfig":
        """Return the same data at another place; InputError where they have none of their own."""
        if self.name == "digits":
            raise InputError(
                f"data_root: {root!r} is not allowed; expected none, as the digits come with the "
                "suite"
            )
        return replace(self, root=root)


def load_images(config: DataConfig, split: Split = "train") -> Images:
    """Read one split of the data set that `config` names, resized to `config.image_size`.

    Raises:
        InputError: The data are missing, damaged, empty, of another shape or too large for memory.
    """
    return read_images(config.name, config.root, split, config.image_size)


def read_images(name: Name, root: str, split: Split | None, size: Size | None) -> Images:
    """Read images as `load_images` does; a `size` of None leaves them as large as they are.

    split: None for a file or folder whose images belong to none.
    """
    path = data_path(root)
    match name:
        case "digits":
            return from_array(*_digits(split), size, f"digits ({split})")
        case "cifar10" | "cifar100":
            return from_array(*cifar(name, path, split), size, f"{name} ({split}) in {path}")
        case "stl10":
            return stl10(path, split, size)
        case "folder":
            return read_folder(path, split, size)
        case "npz":
            return read_npz(path, split, size)


def has_split(config: DataConfig, split: Split) -> bool:
    """Whether the data have such a split, by the names of folders and files: nothing is decoded.

    Raises:
        InputError: The data are missing, or it is not clear which part of them is which split.
    """
    try:
        if config.name == "folder":
            split_folder(data_path(config.root), split)
        elif config.name == "npz":
            npz_file(data_path(config.root), split)
    except NoSplit:
        return False
    return True


def data_path(root: str, key: str = "data.root") -> Path:
    """Return the path that a user wrote, without `~`; InputError where there can be no such path.

    key: what the error names.
    """
    path = user_path(root, key)
    try:
        os.stat(path)
    except FileNotFoundError:
        pass
    except OSError as error:  # a folder that may not be entered, a ring of links
        reason = error.strerror
        raise InputError(f"{key}: {shortened(root)} cannot be read ({reason})") from None
    return path


def _digits(split: Split) -> Arrays:
    """scikit-learn's 1,797 handwritten digits, 8x8: 1,437 to train, 360 to test, stratified."""
    pixels, labels, chosen = _all_digits()
    return pixels[chosen[split]], labels[chosen[split]], tuple("0123456789")


@cache  # parsed from text, which takes longer than a step of training
def _all_digits() -> tuple[np.ndarray, np.ndarray, dict[Split, np.ndarray]]:
    """The pixels (N, 8, 8, 1) and labels of all digits, and which of them are in a split."""
    from sklearn.datasets import load_digits  # imported here: slow, and few runs need it
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(pixels)), test_size=360, random_state=0, stratify=digits.target
    )
    return pixels, digits.target, {"train": train, "test": test}
