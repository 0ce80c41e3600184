"""The corrupted images of an evaluation: computed by the suite, or read from official files."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from classification.corruptions import (
    CORRUPTIONS,
    PROCEDURAL,
    VERSION,
    applicable,
    corrupt,
    load_official,
)
from convnorm.experiment.data import Images
from convnorm.experiment.errors import InputError

SMALLEST = 3  # pixels of an image's side, as a blur mirrors two of them


@dataclass(frozen=True)
class Corruption:
    """One corruption of a data set.

    settings: JSON-able, everything but the clean images that determines the corrupted ones.
    images: (positions (N,), severity) -> (N, C, H, W) uint8.
    """

    name: str
    settings: dict[str, Any]
    images: Callable[[Tensor, int], Tensor]


def made_here(clean: Images, seed: int) -> list[Corruption]:
    """Return every corruption that works on so many channels, computed by the suite."""
    found = []
    for name in CORRUPTIONS:
        if applicable(name, clean.images.shape[1]):
            settings = {"source": VERSION, "seed": seed, "pillow": version("pillow")}
            settings |= {"note": "procedural"} if name in PROCEDURAL else {}
            found.append(Corruption(name, settings, partial(_make, clean.images, name, seed)))
    return found


def check_size(clean: Images) -> None:
    """Raise InputError for images that are too small to be blurred and pixelated."""
    height, width = clean.images.shape[-2:]
    if min(height, width) < SMALLEST:
        raise InputError(
            f"corruptions: the images have {height}x{width} pixels; expected at least "
            f"{SMALLEST}x{SMALLEST}"
        )


def official(clean: Images, folder: Path) -> list[Corruption]:
    """Return the corruption in each .npy file of CIFAR-10-C or -100-C; InputError for bad files."""
    files = sorted(file for file in folder.glob("*.npy") if file.name != "labels.npy")
    if not files:
        raise InputError(f"corruptions_dir: {folder} has no corruption in it; expected .npy files")
    loaded = {file: load_official(folder, file.stem, clean) for file in files}
    return [
        Corruption(
            file.stem, {"source": "official", "sha256": _sha256(file)}, partial(_take, images)
        )
        for file, images in loaded.items()
    ]


def _make(clean: Tensor, name: str, seed: int, positions: Tensor, severity: int) -> Tensor:
    return corrupt(clean[positions], name, severity, seed=seed, indices=positions)


def _take(corrupted: Tensor, positions: Tensor, severity: int) -> Tensor:
    return corrupted[severity - 1][positions]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
