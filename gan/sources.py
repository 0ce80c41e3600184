"""What can be scored: generators of runs, folders and files of images, and named data sets."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnorm.experiment.data import IMAGE_SUFFIXES, DataConfig, load_images
from convnorm.experiment.errors import InputError
from convnorm.experiment.pixels import resize
from gan.models import load_generator
from gan.records import Origin
from gan.scoring import Sample

NATIVE_SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32}
SOURCES = (
    "a run folder, a checkpoint .pt, a folder of images, an .npz file, or digits, cifar10, "
    "cifar100, with :train or :test if wanted"
)


@dataclass(frozen=True)
class ImageSource:
    """Images that can be scored, (N, C, H, W) uint8, or a generator of them.

    image_size: their height and width in pixels. origin: where they come from.
    """

    images: Tensor | Sample
    image_size: int
    origin: Origin


def read_source(text: str, role: str, split: str, device: torch.device, root: str) -> ImageSource:
    """Read one of `SOURCES`.

    role: FAKE or REAL, for the error. split: of a data set whose text names none. root: the folder
        of the CIFAR archives.

    Raises:
        InputError: The text is none of them, or what it names cannot be read.
    """
    name, _, given_split = text.partition(":")
    path = Path(text).expanduser()
    if name in NATIVE_SIZES and given_split in ("", "train", "test"):
        origin = Origin(name, given_split or split)
        data = DataConfig(name, root, NATIVE_SIZES[name])
        return ImageSource(load_images(data, origin.split).images, data.image_size, origin)
    if path.suffix == ".pt" or any((path / file).exists() for file in ("last.pt", "config.yaml")):
        loaded = load_generator(path, device)
        origin = Origin(text, step=loaded.step, ema=loaded.ema, sha256=loaded.sha256)
        return ImageSource(loaded.sample, loaded.config.data.image_size, origin)
    if path.is_dir() or (path.is_file() and path.suffix == ".npz"):
        kind = "folder" if path.is_dir() else "npz"
        data = DataConfig(kind, str(path), native_size(path))
        return ImageSource(load_images(data).images, data.image_size, Origin(text))
    state = "neither of these" if path.exists() else "not found"
    raise InputError(f"{role}: {text!r} is {state}: {SOURCES}")


def native_size(path: Path) -> int:
    """Return the height of the first image in a folder or .npz file, in pixels."""
    with suppress(Exception):  # reading all of it comes next, and says what is wrong
        if path.is_file():
            return np.load(path)["images"].shape[1]
        files = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        with Image.open(next(files)) as image:
            return image.height
    return DataConfig.image_size


def resized(source: ImageSource, size: int) -> ImageSource:
    """Return the source with images of `size`; its origin says what they were resized from."""
    if source.image_size == size:
        return source
    images = source.images
    if isinstance(images, Tensor):
        new = resize(images, size)
    else:

        def new(num: int, seed: int) -> Tensor:
            return resize(images(num, seed), size)

    return ImageSource(new, size, replace(source.origin, resized_from=source.image_size))
