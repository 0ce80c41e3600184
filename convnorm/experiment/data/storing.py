"""Makes files of images, see `stored`: what is done survives a kill, and no half of one is read."""

import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from tqdm import tqdm

from convnorm.experiment import files
from convnorm.experiment.codec import from_json, to_json
from convnorm.experiment.data.pixels import size_of, size_text
from convnorm.experiment.data.stored import (
    HEADER,
    RGB,
    About,
    ImageFile,
    index_sha256,
    open_file,
    per_read,
)
from convnorm.experiment.errors import InputError

SAVE_EVERY = 10  # seconds of work that a kill loses


@dataclass(frozen=True)
class Progress:
    """What is done of a file.

    source: see `stored`. images: how many are in it, of so many channels. left_out: the numbers of
    damaged ones that are not. native_sizes: the smallest and the largest height and width before
    resizing.
    """

    source: str
    images: int = 0
    channels: int = 1
    left_out: tuple[int, ...] = ()
    native_sizes: tuple[tuple[int, int], tuple[int, int]] | None = None


def stored(
    path: Path,
    source: str,
    num: int,
    sides: tuple[int, int],
    build: Callable[["Building"], None],
) -> ImageFile:
    """Return the file `path`, which `build` makes unless it is there and of the same source.

    Of several processes that want it, one makes it and the others wait.

    source: a hash of all that the content follows from. A file of another one is made again, and so
        is one that is damaged.
    num: how many images there are, with those that are left out. sides: their height and width.
    build: goes on at number `Building.done` of the images, and ends with `Building.finish`.

    Raises InputError where the file cannot be written, and whatever `build` raises: what is done by
    then stays, and the same call goes on with it.
    """
    if found := _current(path, source):
        return found
    with _locked(_part_of(path)) as file:
        if found := _current(path, source):  # made by another process
            _part_of(path).unlink()
            return found
        again = " again: it is damaged, or of other images" if path.exists() else ""
        print(f"{path}: {num} images are written to it{again}", file=sys.stderr)
        with _writing(Building(path, source, sides, file)) as building:
            building.require_room(num)
            build(building)
    return open_file(path)


class Building:
    """A file of images while it is made."""

    def __init__(self, path: Path, source: str, sides: tuple[int, int], file: IO[bytes]):
        self.path, self.sides, self._file = path, sides, file
        self.notes = _part_of(path).with_suffix(".json")
        self.progress = _progress(self.notes, source)
        there = os.fstat(file.fileno()).st_size
        if there < HEADER + self._bytes:
            self.progress = Progress(source)
        file.truncate(HEADER + self._bytes)
        file.seek(0, os.SEEK_END)
        self._saved = time.monotonic()

    def require_room(self, num: int) -> None:
        """Raise InputError, before the work, if the disk cannot take the rest of `num` images."""
        needed = num * RGB * math.prod(self.sides)
        free = shutil.disk_usage(self.path.parent).free
        if needed > free + HEADER + self._bytes:
            raise InputError(
                f"{self.path}: {num} images of {size_text(self.sides)} pixels take up to "
                f"{needed / 2**30:.3g} GiB, of which the disk has {free / 2**30:.3g} GiB free"
            )

    @property
    def done(self) -> int:
        """How many images were added or left out."""
        return self.progress.images + len(self.progress.left_out)

    @property
    def _bytes(self) -> int:
        return self.progress.images * self._image_bytes

    @property
    def _image_bytes(self) -> int:
        return self.progress.channels * math.prod(self.sides)

    def add(self, image: np.ndarray, native: tuple[int, int]) -> None:
        """Add an image (C, H, W) uint8, C 1 or 3; gray ones fill all channels beside others.

        native: its height and width before it was resized.
        """
        channels = image.shape[0]
        if channels > self.progress.channels:
            self._widen()
        elif channels < self.progress.channels:
            image = image.repeat(RGB, axis=0)
        self._file.write(np.ascontiguousarray(image))
        least, most = self.progress.native_sizes or (native, native)
        self.progress = replace(
            self.progress,
            images=self.progress.images + 1,
            native_sizes=(min(least, native), max(most, native)),
        )
        self._save_now_and_then()

    def leave_out(self) -> None:
        """Go on without the next image."""
        left_out = (*self.progress.left_out, self.done)
        self.progress = replace(self.progress, left_out=left_out)
        self._save_now_and_then()

    def finish(self, labels: np.ndarray, classes: Sequence[str], made: str) -> None:
        """Complete the file, and give it its name.

        labels: (N,), of all images, with those that are left out. made: see `About`.
        """
        progress = self.progress
        if progress.images == 0:
            raise InputError(f"{self.path}: no image is left to be in it")
        self.save()
        shape = torch.Size((progress.images, progress.channels, *self.sides))
        sha256, checksums = self._hashes(shape)
        labels = np.delete(labels.astype(np.int64), progress.left_out)
        native_sizes = tuple(size_of(*native) for native in progress.native_sizes)
        index = index_sha256(labels, checksums)
        about = to_json(About(progress.source, made, native_sizes, sha256, index))
        for array in (labels, checksums, np.array(classes), np.array(json.dumps(about))):
            npy.write_array(self._file, array, allow_pickle=False)
        self._file.seek(0)
        header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
        npy.write_array_header_1_0(self._file, header)
        if self._file.tell() != HEADER:
            raise AssertionError(f"a header of {self._file.tell()} bytes")
        self._flush()
        os.replace(_part_of(self.path), self.path)
        self.notes.unlink(missing_ok=True)

    def save(self) -> None:
        """Make sure that what is done is there after a kill."""
        self._flush()
        files.write_json(self.notes, to_json(self.progress))
        self._saved = time.monotonic()

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _widen(self) -> None:
        """Let gray images have three channels, where they are, the last one first."""
        before, self.progress = self.progress, Progress(self.progress.source)
        self.notes.unlink(missing_ok=True)  # until it is done, nothing can be gone on with
        num, gray = before.images, math.prod(self.sides)
        chunk = per_read(torch.Size((num, RGB, *self.sides)))
        for first in reversed(range(0, num, chunk)):
            self._file.seek(HEADER + first * gray)
            rows = np.frombuffer(self._file.read(min(chunk, num - first) * gray), np.uint8)
            self._file.seek(HEADER + first * gray * RGB)
            self._file.write(rows.reshape(-1, 1, gray).repeat(RGB, axis=1))
        self.progress = replace(before, channels=RGB)
        self._file.seek(HEADER + self._bytes)

    def _hashes(self, shape: torch.Size) -> tuple[str, np.ndarray]:
        """Read all images again, for `Images.sha256` and the checksum of each."""
        digest, checksums = hashlib.sha256(repr(tuple(shape)).encode()), []
        self._file.seek(HEADER)
        with tqdm(total=shape[0], desc="hashing", unit="image", disable=None, leave=False) as bar:
            while left := shape[0] - len(checksums):
                content = self._file.read(min(left, per_read(shape)) * self._image_bytes)
                digest.update(content)
                rows = np.frombuffer(content, np.uint8).reshape(-1, self._image_bytes)
                checksums += [zlib.crc32(row) for row in rows]
                bar.update(len(rows))
        return digest.hexdigest(), np.array(checksums, np.uint32)


def _current(path: Path, source: str) -> ImageFile | None:
    """Open the file if it is what would be made."""
    if not path.exists():
        return None
    try:
        found = open_file(path)
    except InputError:
        return None
    return found if found.about.source == source else None


def _part_of(path: Path) -> Path:
    """Where the file is while it is made."""
    return path.with_name(f".{path.name.lstrip('.')}.part")


def _progress(notes: Path, source: str) -> Progress:
    """Return what is done of the file; nothing if it is of another source."""
    try:
        found = from_json(Progress, json.loads(notes.read_bytes()), notes)
    except (OSError, ValueError):
        return Progress(source)
    return found if found.source == source else Progress(source)


@contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """Open the file that is being made, for this process alone."""
    while True:
        try:
            number = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise InputError(
                f"{part}: cannot be written ({error.strerror}); expected a folder that can be "
                "written to"
            ) from None
        with open(number, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{part}: waiting for the process that makes it", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass  # a file system without locks
            if not part.exists() or not os.path.samefile(file.fileno(), part):
                continue  # whoever held it has just finished it
            yield file
            return


@contextmanager
def _writing(building: Building) -> Iterator[Building]:
    """Keep what is done when it ends early; InputError where the disk refuses."""
    try:
        yield building
    except OSError as error:
        raise InputError(
            f"{building.path}: cannot be written ({error.strerror}); what is done of it stays"
        ) from None
    except (InputError, KeyboardInterrupt):
        if building.done:
            building.save()
        raise
    finally:
        if not building.done:
            _part_of(building.path).unlink(missing_ok=True)
