"""One split of a data set, in memory or on disk, and the line that says what was read."""

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from convnorm.experiment.data.pixels import (
    RESIZED_BY,
    Size,
    height_and_width,
    require_shape,
    resize,
    size_of,
    size_text,
)
from convnorm.experiment.data.stored import StoredImages, per_read
from convnorm.experiment.errors import InputError
from convnorm.experiment.memory import require_memory

Pixels = Tensor | StoredImages  # (N, C, H, W) uint8
MAX_CLASSES = 32_768  # ImageNet-21k has 21,841; more are ids that were given as labels


class NoSplit(InputError):
    """The data are there, but not the split that is asked for."""


@dataclass(frozen=True)
class Images:
    """One split of a data set.

    Args:
        images: (N, C, H, W) uint8, C 1 (gray) or 3 (RGB), in memory or in a file.
        labels: (N,) int64, the index of each image's class in `classes`.
        classes: The names of the classes.
        found: What was read and skipped, in one line.
        native_sizes: The smallest and the largest size before images were resized.
    """

    images: Pixels
    labels: Tensor
    classes: tuple[str, ...]
    found: str = ""
    native_sizes: tuple[Size, Size] | None = None

    @property
    def size(self) -> Size:
        """Their size in pixels."""
        return size_of(*self.images.shape[2:])

    @property
    def place(self) -> str:
        """Where the images are, in words."""
        size = f"{self.images.shape.numel() / 2**20:.3g} MiB"
        if isinstance(self.images, StoredImages):
            return f"disk ({size} in {self.images.file.path})"
        return f"memory ({size})"

    def to(self, device: torch.device) -> "Images":
        """Return the same images and labels on another device; images in a file stay there."""
        on_disk = isinstance(self.images, StoredImages)
        images = self.images if on_disk else self.images.to(device)
        return replace(self, images=images, labels=self.labels.to(device))

    def take(self, positions: Tensor) -> "Images":
        """Return the images at these positions, int64, with their labels."""
        return replace(self, images=taken(self.images, positions), labels=self.labels[positions])

    def sha256(self) -> str:
        """Return the SHA-256 of the images' shape and bytes, in hex, without the labels."""
        if isinstance(self.images, StoredImages) and self.images.known_sha256:
            return self.images.known_sha256
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for part in parts_of(self.images, per_read(self.images.shape)):
            digest.update(part.cpu().contiguous().numpy())
        return digest.hexdigest()


def parts_of(images: Pixels, size: int, turns: slice = slice(None)) -> Iterator[Tensor]:
    """Give images in parts of `size`, the last one smaller; of all parts, those of `turns`."""
    for first in range(0, len(images), size)[turns]:
        yield images[first : first + size]


def taken(images: Pixels, positions: Tensor) -> Pixels:
    """Return the images at these positions, int64; of those in a file none is read yet."""
    return images.take(positions) if isinstance(images, StoredImages) else images[positions]


def evenly_spaced(size: int, num: int) -> Tensor:
    """Return `num` positions below `size`, int64, or all: many data sets are sorted by class."""
    return torch.linspace(0, size - 1, min(num, size)).long()


@dataclass(frozen=True)
class Skipped:
    """What is not read. why: the rule, in a word or two. what: a file of a folder, a key of npz."""

    why: str
    name: str
    what: str = "file"


def from_array(
    pixels: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    size: Size | None,
    where: object,
    skipped: Sequence[Skipped] = (),
) -> Images:
    """Return images of (N, H, W, C) uint8 pixels, resized to `size`; None leaves them as they are.

    Raises:
        InputError: They have another shape, or do not fit into memory once they are resized.
    """
    num, height, width, channels = pixels.shape
    native = size_of(height, width)
    size = native if size is None else size
    require_shape(height, width, size, f"{where}: each image is")
    what = f"{where}: {num} images of {size_text(size)} pixels"
    require_memory(num * channels * math.prod(height_and_width(size)), what)
    images = resize(torch.from_numpy(pixels).permute(0, 3, 1, 2), size)
    return images_of(images, labels, classes, (native, native), where, skipped)


def images_of(
    images: Pixels,
    labels: np.ndarray,
    classes: tuple[str, ...],
    native_sizes: tuple[Size, Size],
    where: object,
    skipped: Sequence[Skipped] = (),
) -> Images:
    """Return images (N, C, H, W) uint8 that have their final size, with the line on them."""
    count, classes_count = _number(len(images), "image", "s"), _number(len(classes), "class", "es")
    line = f"{count} in {classes_count} from {where}{said(skipped)}"
    first, last = map(size_text, native_sizes)
    line += f", {first}" if first == last else f", {first} to {last}"
    final = size_of(*images.shape[2:])
    if native_sizes != (final, final):
        line += f" resized to {size_text(final)} ({RESIZED_BY})"
    labels = torch.from_numpy(labels.astype(np.int64))
    images = images.contiguous() if isinstance(images, Tensor) else images
    return Images(images, labels, classes, line, native_sizes)


def class_name(name: str) -> str:
    """Return a class's name as it is recorded: in Unicode's composed form, without margins."""
    return unicodedata.normalize("NFC", name).strip()


def checked_classes(names: Sequence[str], where: object) -> tuple[str, ...]:
    """Return the names of classes as they are recorded.

    Raises:
        InputError: There are more than `MAX_CLASSES`, one is empty or cannot be printed, or two
            are equal; the case of letters tells them apart.
    """
    if len(names) > MAX_CLASSES:
        raise InputError(f"{where}: {len(names)} classes, expected at most {MAX_CLASSES}")
    names = [class_name(name) for name in names]
    for name in names:
        if not name or not name.isprintable():
            raise InputError(f"{where}: a class is called {name!r}, expected a name in Unicode")
    if len(set(names)) < len(names):
        twice = sorted(name for name, times in Counter(names).items() if times > 1)
        raise InputError(
            f"{where}: more than one class is called {', '.join(map(repr, twice[:5]))}; "
            "expected a name of its own for each"
        )
    return tuple(names)


def said(skipped: Sequence[Skipped]) -> str:
    """How many entries were skipped by which rule, each rule with its first entry."""
    said = []
    for what in ("file", "key"):
        rules: dict[str, list[str]] = {}
        for each in skipped:
            if each.what == what:
                rules.setdefault(each.why, []).append(each.name)
        parts = [
            f"{why} {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
            for why, names in rules.items()
        ]
        if parts:
            number = _number(sum(map(len, rules.values())), what, "s")
            said.append(f"{number} skipped: {', '.join(parts)}")
    return f" ({'; '.join(said)})" if said else ""


def _number(number: int, noun: str, plural: str) -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"
