"""Images in a file, read when they are asked for: what is larger than memory.

The file is a row of arrays as `np.save` writes them: images (N, C, H, W) uint8, labels (N,) int64,
checksums (N,) uint32 (CRC-32 of each image), classes (K,) text, and a JSON object, see `About`.
`np.load(file, mmap_mode="r")` maps its images. Here they are read instead: pages that are mapped
count as memory of the process, and a disk that fails kills it in place of raising an error.
"""

import hashlib
import json
import os
import zlib
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from convnorm.experiment.codec import from_json
from convnorm.experiment.data.pixels import Size
from convnorm.experiment.errors import InputError

RGB = 3  # channels
HEADER = 128  # bytes before the images
PROBES = 16  # images that are checked as a file is opened; the others are as they are read
READ = 2**22  # bytes that are read at a time where all images are


@dataclass(frozen=True)
class About:
    """What a file says of its images.

    source: a hash of all that they were made from, or empty; see `storing.stored`.
    made: how they were made, in words.
    native_sizes: the smallest and the largest size that they had before.
    sha256: `Images.sha256` of them. index_sha256: of the bytes of labels and checksums.
    """

    FORMAT: ClassVar = "convnorm-images-1"

    source: str
    made: str
    native_sizes: tuple[Size, Size]
    sha256: str
    index_sha256: str


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An open file of images. checksums: (N,) uint32, of the images' bytes."""

    path: Path
    descriptor: "_Descriptor"
    shape: torch.Size
    labels: np.ndarray
    checksums: np.ndarray
    classes: tuple[str, ...]
    about: About

    @property
    def image_bytes(self) -> int:
        return self.shape[1:].numel()

    def read(self, first: int, rows: np.ndarray) -> None:
        """Fill `rows` (n, C * H * W) uint8 with the images from number `first` on.

        Raises InputError for an image that cannot be read, or is not what was written.
        """
        left, offset = memoryview(rows).cast("B"), HEADER + first * self.image_bytes
        while left:
            try:
                done = os.preadv(self.descriptor.number, [left], offset)
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read ({error.strerror})") from None
            if done == 0:
                raise InputError(f"{self.path}: ends early; expected the file that was made")
            left, offset = left[done:], offset + done
        for number, row in enumerate(rows, first):
            if zlib.crc32(row) != self.checksums[number]:
                raise InputError(
                    f"{self.path}: image {number} is damaged (its CRC-32 is another one); expected "
                    "the file that was made"
                )


class _Descriptor:
    """A file that is open for as long as this object is there, whatever its name becomes."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


class StoredImages:
    """The images of a file, or some of them; a tensor where all that is asked for is a part of it.

    shape: (N, C, H, W), of uint8. Any thread may read.
    channels_last: in which order the strides of what is read are. Of a single channel both orders
        are the same bytes, but convolutions look at them, and round in another way.
    """

    def __init__(self, file: ImageFile, *, channels_last: bool = False):
        self.file, self.shape, self.channels_last = file, file.shape, channels_last
        self.positions: Tensor | None = None  # (N,) int64, which of the file's; None: all

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def known_sha256(self) -> str | None:
        """What `Images.sha256` is, where the file says it."""
        return self.file.about.sha256 if self.positions is None else None

    def take(self, positions: Tensor) -> "StoredImages":
        """Return the images at these positions, int64; nothing is read."""
        taken, positions = copy(self), positions.cpu()
        taken.positions = positions if self.positions is None else self.positions[positions]
        taken.shape = torch.Size((len(positions), *self.shape[1:]))
        return taken

    def __getitem__(self, positions: Tensor | slice) -> Tensor:
        """Read the images at these positions, int64, onto the CPU."""
        if isinstance(positions, slice):
            positions = torch.arange(len(self))[positions]
        into = self.room(len(positions))
        self.read(positions, into)
        return into

    def room(self, num: int, *, pin_memory: bool = False) -> Tensor:
        """Return memory for `num` images."""
        channels, *size = self.shape[1:]
        if self.channels_last:
            shape = (num, *size, channels)
            return torch.empty(shape, dtype=torch.uint8, pin_memory=pin_memory).movedim(3, 1)
        return torch.empty((num, channels, *size), dtype=torch.uint8, pin_memory=pin_memory)

    def read(self, positions: Tensor, into: Tensor) -> None:
        """Read the images at these positions, int64, into what `room` returned."""
        positions = positions.cpu()
        numbers = (positions if self.positions is None else self.positions[positions]).numpy()
        rows = into.view(len(numbers), self.file.image_bytes).numpy()
        if len(numbers) > 1 and (np.diff(numbers) == 1).all():
            self.file.read(int(numbers[0]), rows)
            return
        for row in np.argsort(numbers, kind="stable").tolist():  # a disk likes to go forward
            self.file.read(int(numbers[row]), rows[row : row + 1])


def per_read(shape: torch.Size) -> int:
    """Return how many images (N, C, H, W) uint8 are read at a time where all of them are."""
    return max(1, READ // max(1, shape[1:].numel()))


def open_file(path: Path) -> ImageFile:
    """Open a file of images and check what can be without reading all of it.

    Raises InputError for a file that is missing, of another kind, of another length than it says,
    or damaged in its labels or in one of `PROBES` images.
    """
    expected = f"a file of scripts/prepare_data.py (format {About.FORMAT})"
    try:
        descriptor = _Descriptor(path)
        with open(descriptor.number, "rb", closefd=False) as file:
            shape, dtype = _header(file)
            if dtype != np.uint8 or len(shape) != 4 or file.tell() != HEADER:
                raise ValueError(f"its first array is {dtype} {shape}")
            file.seek(int(np.prod(shape, dtype=object)), os.SEEK_CUR)
            labels, checksums, classes, about = (
                npy.read_array(file, allow_pickle=False) for _ in range(4)
            )
            if file.read(1):
                raise ValueError("it goes on behind its last array")
        about = from_json(About, json.loads(str(about)), path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected {expected}") from None
    except InputError:
        raise
    except Exception as error:  # which one depends on what the file is
        raise InputError(f"{path}: {str(error).splitlines()[0]}; expected {expected}") from None
    classes = tuple(classes.tolist())
    found = ImageFile(path, descriptor, torch.Size(shape), labels, checksums, classes, about)
    if index_sha256(labels, checksums) != found.about.index_sha256:
        raise InputError(f"{path}: its labels are damaged; expected the file that was made")
    probes = torch.linspace(0, shape[0] - 1, min(PROBES, shape[0])).long()
    for number in probes.tolist():
        found.read(number, np.empty((1, found.image_bytes), np.uint8))
    return found


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    if npy.read_magic(file) != (1, 0):
        raise ValueError("its header is of another version")
    shape, _, dtype = npy.read_array_header_1_0(file)
    return shape, dtype


def index_sha256(labels: np.ndarray, checksums: np.ndarray) -> str:
    """Return `About.index_sha256`."""
    return hashlib.sha256(labels.tobytes() + checksums.tobytes()).hexdigest()
