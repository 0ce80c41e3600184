"""Reads real images, wherever they are, into one uint8 tensor.

Whole data sets of small images fit into memory, on an accelerator too, so that nothing is decoded
or copied while training runs. `convnorm.experiment.run.batches` draws minibatches from the tensor.
"""

import io
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np

from convnorm.experiment.data.folder import read_folder, split_folder
from convnorm.experiment.data.images import Images, NoSplit, from_array
from convnorm.experiment.data.npz import read_npz
from convnorm.experiment.data.npz_files import npz_file
from convnorm.experiment.data.split_names import Split
from convnorm.experiment.errors import InputError, shortened
from convnorm.experiment.paths import user_path

Name = Literal["digits", "cifar10", "cifar100", "folder", "npz"]
Arrays = tuple[np.ndarray, np.ndarray, tuple[str, ...]]  # pixels (N, H, W, C), labels, classes


@dataclass(frozen=True)
class DataConfig:
    """Which real images, and how large.

    Args:
        name: digits (of scikit-learn), cifar10, cifar100 (downloaded once), folder or npz (yours).
        root: The folder for the CIFAR archives; for folder and npz the folder or file itself.
        image_size: Height and width in pixels; images of another size are resized to it.
    """

    MAX_SIZE: ClassVar = 1024

    name: Name = "cifar10"
    root: str = "data"
    image_size: int = 32

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            choices = ", ".join(get_args(Name))
            raise InputError(f"data.name: got {self.name!r}, expected one of {choices}")
        if not self.root:
            raise InputError(f"data.root: got {self.root!r}, expected a folder or a file")
        if type(self.image_size) is not int or not 1 <= self.image_size <= self.MAX_SIZE:
            raise InputError(
                f"data.image_size: got {self.image_size!r}, expected an integer from 1 to "
                f"{self.MAX_SIZE}"
            )

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
        InputError: The data are missing, damaged, empty, not square images or too large for memory.
    """
    return read_images(config.name, config.root, split, config.image_size)


def read_images(name: Name, root: str, split: Split | None, size: int | None) -> Images:
    """Read images as `load_images` does; a `size` of None leaves them as large as they are.

    split: None for a file or folder whose images belong to none.
    """
    path = data_path(root)
    match name:
        case "digits":
            return from_array(*_digits(split), size, f"digits ({split})")
        case "cifar10" | "cifar100":
            return from_array(*_cifar(name, path, split), size, f"{name} ({split}) in {path}")
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


def _cifar(name: str, root: Path, split: Split) -> Arrays:
    """CIFAR-10 or CIFAR-100 (fine labels) through torchvision, which checks every MD5."""
    from torchvision import datasets  # imported here: slow, and few runs need it

    dataset_class = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    archive = root / dataset_class.filename
    sound = datasets.utils.check_integrity(archive, dataset_class.tgz_md5)
    if not sound and not (root / dataset_class.base_folder).exists():
        print(f"downloading {dataset_class.url} to {root}", file=sys.stderr)
    out = sys.stderr if sys.stderr.isatty() else io.StringIO()  # for torchvision's progress bar
    try:
        # NumPy 2.4.0 to 2.4.4 warn of pickles this old, Python 3.12 of how archives are unpacked.
        with warnings.catch_warnings(action="ignore"), redirect_stdout(out), redirect_stderr(out):
            dataset = dataset_class(root, train=split == "train", download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        if sound:
            raise InputError(f"{archive}: cannot be unpacked ({error})") from error
        state = "damaged" if archive.exists() else "missing"
        raise InputError(
            f"{archive} is {state} and the download failed ({error!r}): put that file "
            "there, or give --data.name npz --data.root FILE or --data.name folder "
            "--data.root FOLDER"
        ) from error
    return dataset.data, np.array(dataset.targets), tuple(dataset.classes)
