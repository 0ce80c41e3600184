"""What can be scored: generators of runs, folders and files of images, and named data sets."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convnorm.experiment.data import IMAGE_SUFFIXES, DataConfig, load_images, resize
from convnorm.experiment.errors import InputError
from gan.models import load_generator
from gan.scoring import Sample

NATIVE_SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32}
SOURCES = (
    "a run folder, a checkpoint .pt, a folder of images, an .npz file, or digits, cifar10, "
    "cifar100, with :train or :test if wanted"
)


@dataclass(frozen=True)
class Source:
    """Images, (N, C, H, W) uint8, or a generator of them, with what a record says about it."""

    images: Tensor | Sample
    image_size: int
    facts: Mapping[str, Any]


def read_source(text: str, role: str, split: str, device: torch.device, root: str) -> Source:
    """Read one of `SOURCES`.

    role: FAKE or REAL, for the error; split and root: of a data set that does not name its own.
    Raises InputError for a text that is none of them and for whatever cannot be read.
    """
    name, _, given_split = text.partition(":")
    path = Path(text).expanduser()
    if name in NATIVE_SIZES and given_split in ("", "train", "test"):
        facts = {"source": name, "split": given_split or split}
        data = DataConfig(name, root, NATIVE_SIZES[name])
        return Source(load_images(data, facts["split"]).images, data.image_size, facts)
    if path.suffix == ".pt" or any((path / file).exists() for file in ("last.pt", "config.yaml")):
        loaded = load_generator(path, device)
        facts = {
            "source": text,
            "split": None,
            "step": loaded.step,
            "ema": loaded.ema,
            "sha256": loaded.sha256,
        }
        return Source(loaded.sample, loaded.config.data.image_size, facts)
    if path.is_dir() or (path.is_file() and path.suffix == ".npz"):
        kind = "folder" if path.is_dir() else "npz"
        data = DataConfig(kind, str(path), native_size(path))
        return Source(load_images(data).images, data.image_size, {"source": text, "split": None})
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


def resized(source: Source, size: int) -> Source:
    """Return the source with images of `size`, and say so in its facts."""
    if source.image_size == size:
        return source
    images = source.images
    if isinstance(images, Tensor):
        new = resize(images, size)
    else:

        def new(num: int, seed: int) -> Tensor:
            return resize(images(num, seed), size)

    return Source(new, size, {**source.facts, "resized_from": source.image_size})
