"""Reads real images, wherever they are, into one uint8 tensor.

Whole data sets of small images fit into memory, on an accelerator too, so that nothing is decoded
or copied while training runs. `convnorm.experiment.run.batches` draws minibatches from the tensor.
"""

import hashlib
import io
import sys
import warnings
import zipfile
import zlib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from convnorm.experiment.errors import InputError
from convnorm.experiment.pixels import resize

Name = Literal["digits", "cifar10", "cifar100", "folder", "npz"]
Split = Literal["train", "test"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class DataConfig:
    """Which real images, and how large.

    Args:
        name: digits (of scikit-learn), cifar10, cifar100 (downloaded once), folder or npz (yours).
        root: The folder for the CIFAR archives; for folder and npz the folder or file itself.
        image_size: Height and width in pixels; images of another size are resized to it.
    """

    name: Name = "cifar10"
    root: str = "data"
    image_size: int = 32

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            choices = ", ".join(get_args(Name))
            raise InputError(f"data.name: got {self.name!r}, expected one of {choices}")
        if not self.root:
            raise InputError(f"data.root: got {self.root!r}, expected a folder or a file")
        if type(self.image_size) is not int or self.image_size < 1:
            raise InputError(f"data.image_size: got {self.image_size!r}, expected an integer >= 1")


@dataclass(frozen=True)
class Images:
    """One split of a data set.

    Args:
        images: (N, C, H, W) uint8, C 1 (gray) or 3 (RGB).
        labels: (N,) int64, the index of each image's class in `classes`.
        classes: The names of the classes.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def to(self, device: torch.device) -> "Images":
        """Return the same images and labels on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def sha256(self) -> str:
        """Return the SHA-256 of the images' shape and bytes, in hex, without the labels."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy())
        return digest.hexdigest()


def load_images(config: DataConfig, split: Split = "train") -> Images:
    """Read one split of the data set that `config` names, resized to `config.image_size`.

    Raises:
        InputError: The data are missing, damaged, empty or not square images of one size.
    """
    root = Path(config.root).expanduser()
    match config.name:
        case "digits":
            loaded = _digits(split)
        case "cifar10" | "cifar100":
            loaded = _cifar(config.name, root, split)
        case "folder":
            loaded = _folder(root, split)
        case "npz":
            loaded = _npz(root, split)
    height, width = loaded.images.shape[-2:]
    if height != width:
        raise InputError(f"{root}: its images are {width} wide and {height} high, expected squares")
    return replace(loaded, images=resize(loaded.images, config.image_size))


def _images(pixels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Images:
    """Wrap pixels (N, H, W, C) uint8 and labels (N,) of any integer type."""
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return Images(channels_first, torch.from_numpy(labels.astype(np.int64)), classes)


def _digits(split: Split) -> Images:
    """scikit-learn's 1,797 handwritten digits, 8x8: 1,437 to train, 360 to test, stratified."""
    from sklearn.datasets import load_digits  # imported here: slow, and few runs need it
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(pixels)), test_size=360, random_state=0, stratify=digits.target
    )
    chosen = train if split == "train" else test
    return _images(pixels[chosen], digits.target[chosen], tuple("0123456789"))


def _cifar(name: str, root: Path, split: Split) -> Images:
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
    return _images(dataset.data, np.array(dataset.targets), tuple(dataset.classes))


def _folder(root: Path, split: Split) -> Images:
    """Read root/<split>/<class>/, root/<class>/ or root/, in the order of the files' names."""
    base = _split_folder(root, split)
    folders = _class_folders(base)
    if folders and _image_files(base):
        raise InputError(f"{base}: holds images and folders, expected images or class folders")
    paths, labels = [], []
    for label, folder in enumerate(folders or [base]):
        files = _image_files(folder)
        if not files:
            raise InputError(f"{folder}: no images in it, expected {', '.join(IMAGE_SUFFIXES)}")
        paths += files
        labels += [label] * len(files)
    return _images(_decode(paths), np.array(labels), tuple(f.name for f in folders) or ("all",))


def _class_folders(base: Path) -> list[Path]:
    return sorted(path for path in base.glob("[!.]*") if path.is_dir())


def _image_files(folder: Path) -> list[Path]:
    files = (path for path in folder.glob("[!.]*") if path.is_file())
    return sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)


def _split_folder(root: Path, split: Split) -> Path:
    """Return the folder that holds the split; test images are never given as training images."""
    train, test = root / "train", root / "test"
    if not root.is_dir():
        raise InputError(f"data.root: {root} is not a folder")
    if not train.is_dir() and not test.is_dir() and split == "train":
        return root
    wanted = root / split
    if not wanted.is_dir():
        raise InputError(f"{root}: no folder {split!r} in it, so it has no {split} images")
    if train.is_dir() and test.is_dir():  # a class that one lacks would shift the labels
        train_names, test_names = ({f.name for f in _class_folders(s)} for s in (train, test))
        if odd := sorted(train_names ^ test_names):
            raise InputError(f"{root}: classes in only one of train and test: {', '.join(odd)}")
    return wanted


def _decode(paths: list[Path]) -> np.ndarray:
    """Read image files of one size into (N, H, W, C) uint8: C is 1 when all are gray, else 3."""
    pixels, all_gray = None, True
    for index, path in enumerate(tqdm(paths, "reading images", disable=None, leave=False)):
        try:
            with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
                mode, rgb = image.mode, np.asarray(image.convert("RGB"))
        except Exception as error:  # what Pillow raises for a corrupt file depends on the format
            raise InputError(f"{path}: not a readable image ({error})") from error
        if mode.startswith(("I", "F")):  # Pillow would clip these to white
            raise InputError(f"{path}: has pixels of mode {mode}, expected 8 bits a channel")
        if pixels is None:
            pixels = np.empty((len(paths), *rgb.shape), np.uint8)
        if rgb.shape != pixels.shape[1:]:
            size, first = ("x".join(map(str, s[1::-1])) for s in (rgb.shape, pixels.shape[1:]))
            raise InputError(f"{path}: {size} pixels, expected {first} as in {paths[0].name}")
        pixels[index] = rgb
        all_gray &= mode in ("1", "L", "LA")
    return pixels[..., :1] if all_gray else pixels


def _npz(root: Path, split: Split) -> Images:
    """Read arrays `images` (N, H, W[, C]) uint8 and, if present, `labels` (N,) and `classes`."""
    file = _npz_file(root, split)
    arrays = _read_arrays(file)
    if "images" not in arrays:
        raise InputError(f"{file}: images: missing, expected uint8 (N, H, W, C)")
    images = arrays["images"]
    found = f"{file}: images: got {images.dtype} {images.shape}"
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(f"{found}, expected uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    if images.size == 0:
        raise InputError(f"{found}, expected at least one image")
    labels = arrays.get("labels", np.zeros(len(images), np.int64))
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        found = f"{file}: labels: got {labels.dtype} {labels.shape}"
        raise InputError(f"{found}, expected integers ({len(images)},), one for each image")
    names = arrays.get("classes", np.arange(int(labels.max()) + 1).astype(str))
    if names.dtype.kind != "U" or names.ndim != 1:
        raise InputError(f"{file}: classes: got {names.dtype} {names.shape}, expected strings")
    if labels.min() < 0 or labels.max() >= len(names):
        found = f"{file}: labels: got {labels.min()} to {labels.max()}"
        raise InputError(f"{found}, expected 0 to {len(names) - 1}")
    return _images(images, labels, tuple(names.tolist()))


def _npz_file(root: Path, split: Split) -> Path:
    """Return the split's file: root itself, a file in root, or the file beside it."""
    if root.is_dir():
        found = sorted(root.glob(f"*{split}*.npz"))
        if len(found) != 1:
            names = [path.name for path in found]
            raise InputError(f"{root}: expected one file *{split}*.npz, found {names or 'none'}")
        return found[0]
    if not root.is_file():
        raise InputError(f"data.root: {root} does not exist")
    if split == "train":
        return root
    before, train, after = root.name.rpartition("train")
    file = root.with_name(f"{before}test{after}")
    if not train:
        raise InputError(f"{root}: no test images: its name lacks 'train', to put 'test' for it")
    if not file.is_file():
        raise InputError(f"{file}: missing, expected the test images that belong to {root.name}")
    return file


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Return those of `images`, `labels` and `classes` that the file holds."""
    if not zipfile.is_zipfile(file):
        raise InputError(f"{file}: not an .npz file, or a truncated one")
    arrays = {}
    with np.load(file, allow_pickle=False) as archive:
        for key in {"images", "labels", "classes"}.intersection(archive.files):
            try:
                arrays[key] = archive[key]
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise InputError(f"{file}: {key}: cannot be read ({error})") from error
    return arrays
