"""Reads real images, wherever they are, into one uint8 tensor, or one file of uint8.

Whole data sets of small images fit into memory, on an accelerator too, so that nothing is decoded
or copied while training runs. Others are decoded once, into a file. `convnorm.experiment.run.
batches` draws minibatches from either.
"""

import os
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
import torch

from convnorm.experiment.data.archives import cifar, stl10
from convnorm.experiment.data.folder import read_folder, split_folder
from convnorm.experiment.data.images import Images, NoSplit, from_array
from convnorm.experiment.data.npz import read_npz
from convnorm.experiment.data.pixels import Size
from convnorm.experiment.data.prepared import read_prepared
from convnorm.experiment.data.split_files import SUFFIXES, split_file
from convnorm.experiment.data.split_names import Split
from convnorm.experiment.data.stream import Stream, is_large
from convnorm.experiment.errors import InputError, shortened
from convnorm.experiment.paths import user_path

Name = Literal["digits", "cifar10", "cifar100", "stl10", "folder", "npz", "prepared"]
ON_DISK = ("folder", *SUFFIXES)  # those that can be read from a file as they are trained on
CPU = torch.device("cpu")
Arrays = tuple[np.ndarray, np.ndarray, tuple[str, ...]]  # pixels (N, H, W, C), labels, classes


@dataclass(frozen=True)
class DataConfig:
    """Which real images, and how large.

    Args:
        name: digits (of scikit-learn), cifar10, cifar100, stl10 (downloaded once), folder or npz
            (yours), or prepared, the files of scripts/prepare_data.py.
        root: The folder for downloaded archives; for the others the folder or file itself.
        image_size: In pixels, the side of squares or [height, width]; images of another size are
            resized to it, those of another shape refused.
        stream: Whether images are held in memory or read from disk as they are trained on, which
            changes no number. auto is disk for what would take more than half of the free memory.
            From folder and npz, disk makes a file of bytes beside root once.
    """

    MAX_SIZE: ClassVar = 1024
    PLACE: ClassVar = ("root", "stream")  # the fields that say where images are, and not which

    name: Name = "cifar10"
    root: str = "data"
    image_size: int | tuple[int, int] = 32
    stream: Stream = "auto"

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            choices = ", ".join(get_args(Name))
            raise InputError(f"data.name: got {self.name!r}, expected one of {choices}")
        if not self.root:
            raise InputError(f"data.root: got {self.root!r}, expected a folder or a file")
        self._check_size()
        if self.stream not in get_args(Stream):
            choices = ", ".join(get_args(Stream))
            raise InputError(f"data.stream: got {self.stream!r}, expected one of {choices}")
        if self.stream == "disk" and self.name not in ON_DISK:
            raise InputError(
                f"data.stream: 'disk' is not allowed with {self.name}, which is held in memory; "
                "expected memory or auto"
            )

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


def load_images(config: DataConfig, split: Split = "train", device: torch.device = CPU) -> Images:
    """Read one split of the data set that `config` names, resized to `config.image_size`.

    device: where the images will be, if they are not read from disk.

    Raises:
        InputError: The data are missing, damaged, empty, of another shape or too large for memory
            or for the disk.
    """
    return read_images(config.name, config.root, split, config.image_size, config.stream, device)


def read_images(
    name: Name,
    root: str,
    split: Split | None,
    size: Size | None,
    stream: Stream = DataConfig.stream,
    device: torch.device = CPU,
) -> Images:
    """Read images as `load_images` does; a `size` of None leaves them as large as they are.

    split: None for a file or folder whose images belong to none.
    """
    path, is_too_large = data_path(root), partial(is_large, stream, device)
    match name:
        case "digits":
            return from_array(*_digits(split), size, f"digits ({split})")
        case "cifar10" | "cifar100":
            return from_array(*cifar(name, path, split), size, f"{name} ({split}) in {path}")
        case "stl10":
            return stl10(path, split, size)
        case "folder":
            return read_folder(path, split, size, is_too_large)
        case "npz":
            return read_npz(path, split, size, is_too_large)
        case "prepared":
            return read_prepared(path, split, size, is_too_large)


def has_split(config: DataConfig, split: Split) -> bool:
    """Whether the data have such a split, by the names of folders and files: nothing is decoded.

    Raises:
        InputError: The data are missing, or it is not clear which part of them is which split.
    """
    try:
        if config.name == "folder":
            split_folder(data_path(config.root), split)
        elif config.name in SUFFIXES:
            split_file(data_path(config.root), split, SUFFIXES[config.name])
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
