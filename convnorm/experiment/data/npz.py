"""Reads images and labels from .npz files; what they claim is checked before room is made."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from convnorm.experiment.data.images import (
    MAX_CLASSES,
    Images,
    Skipped,
    checked_classes,
    from_array,
    images_of,
)
from convnorm.experiment.data.pixels import (
    Size,
    height_and_width,
    require_shape,
    resize,
    size_of,
)
from convnorm.experiment.data.split_files import SUFFIXES, split_file, train_file
from convnorm.experiment.data.split_names import Split
from convnorm.experiment.data.stored import ImageFile, StoredImages, per_read
from convnorm.experiment.data.stream import IsLarge, kept_beside, status_of
from convnorm.experiment.errors import InputError
from convnorm.experiment.memory import require_memory

HEAD = 2**14  # bytes of a member in which NumPy's header of it ends


@dataclass(frozen=True)
class Header:
    """What a member of the archive says of its array."""

    shape: tuple[int, ...]
    dtype: np.dtype
    length: int  # in bytes
    in_columns: bool

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def read_npz(root: Path, split: Split | None, size: Size | None, is_large: IsLarge) -> Images:
    """Read `images` (N, H, W[, C]) uint8 and, where there are, `labels` (N,) and `classes` (K,).

    `arr_0` stands for images and `arr_1` for labels in files without those names, as in samples of
    guided-diffusion and EDM. Labels are integers: without names of classes, each of 0 to K - 1 has
    an image in the training file, and the test file has no others. Other keys are skipped, and
    `Images.found` says so; but without labels, a key with an entry for each image is refused, as it
    may hold them.

    Args:
        root: A file, or a folder with a file for each split; see `split_file`.
        split: None takes the file that `root` is, whatever its name.
        size: To which the images are resized; None leaves them as they are, in memory.
        is_large: Whether images of so many bytes are read from another file beside this one.

    Raises:
        InputError: A file or key is missing, damaged, encrypted, of another kind or shape, or
            larger than memory.
    """
    file, others = split_file(root, split, SUFFIXES["npz"])
    train = train_file(root, file) if split == "test" else None
    with _opened(file) as archive:
        headers = _headers(archive, file)
        foreign = [name for name in archive.namelist() if not name.endswith(".npy")]
        image_key, label_key = _keys(headers, file)
        num, height, width, channels = (*headers[image_key].shape, 1)[:4]
        pixels = size and math.prod(height_and_width(size))
        on_disk = size is not None and is_large(num * channels * pixels)
        images = None if on_disk else _read(archive, image_key, headers, file)
        labels, names = _labels_and_names(archive, label_key, headers, file)
    if labels is None:
        labels = np.zeros(num, np.int64)
    elif train:
        names = _names_in_training(train, names, file)
    elif split == "train":
        names = names or _names_of_all(labels, file, label_key)
    names = names or tuple(map(str, range(min(max(_largest(labels), 0) + 1, MAX_CLASSES))))
    _require_range(labels, len(names), file, label_key)
    used = {image_key, label_key, "classes"}
    unused = [*(key for key in headers if key not in used), *foreign]
    skipped = [*others, *(Skipped("other", key, "key") for key in unused)]
    if not on_disk:
        images = images.reshape(num, height, width, channels)
        return from_array(images, labels, names, size, file, skipped)
    require_shape(height, width, size, f"{file}: each image is")
    stored = _kept(file, image_key, headers[image_key], size, labels, names)
    native = size_of(height, width)
    # In memory, `from_array` leaves a single channel where it was: behind the pixels.
    images = StoredImages(stored, channels_last=channels == 1 and size == native)
    return images_of(images, labels, names, (native, native), file, skipped)


def _kept(
    file: Path,
    key: str,
    header: Header,
    size: Size,
    labels: np.ndarray,
    classes: tuple[str, ...],
) -> ImageFile:
    """Return the images of an archive in a file beside it."""
    if header.in_columns:
        raise InputError(
            f"{file}: {key}: is in Fortran's order, expected data.stream memory, or C's"
        )
    height, width = header.shape[1:3]

    def read(start: int) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        for pixels in _parts(file, key, header):
            images = resize(torch.from_numpy(pixels[start:]).permute(0, 3, 1, 2), size)
            yield from ((image, (height, width)) for image in images.numpy())
            start = max(0, start - len(pixels))

    listed = [key, *status_of([file], file.parent)]
    return kept_beside(file, "", listed, size, read, labels, classes)


def _parts(file: Path, key: str, header: Header) -> Iterator[np.ndarray]:
    """Read the images a few at a time: (n, H, W, C) uint8.

    All of them, as nothing else checks the CRC-32 of the archive.
    """
    shape = torch.Size((*header.shape, 1)[:4])
    with _opened(file) as archive, _reading(file, key), archive.open(f"{key}.npy") as content:
        content.read(header.length)
        for part in torch.arange(shape[0]).split(per_read(shape)):
            pixels = bytearray(content.read(len(part) * shape[1:].numel()))
            yield np.frombuffer(pixels, np.uint8).reshape(-1, *shape[1:])


# --------------------------------------------------------------------------- labels and names


def _keys(headers: dict[str, Header], file: Path) -> tuple[str, str | None]:
    """Return the keys of the images and of the labels, checked by what the headers say."""
    shown = ", ".join(headers) or "none"
    key = "images" if "images" in headers else "arr_0"
    if key not in headers:
        raise InputError(f"{file}: images: missing, expected uint8 (N, H, W, C); its keys: {shown}")
    images = headers[key]
    channels = images.shape[3:] if len(images.shape) in (3, 4) else None
    if images.dtype != np.uint8 or channels not in ((), (1,), (3,)):
        raise InputError(
            f"{file}: {key}: got {images}, expected uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        )
    if 0 in images.shape:
        raise InputError(f"{file}: {key}: got {images}, expected at least one image")
    second = headers.get("arr_1") if key == "arr_0" else None
    if "labels" in headers:
        labels = "labels"
    elif second and second.dtype.kind in "iu" and second.shape == images.shape[:1]:
        labels = "arr_1"
    else:
        others = {other for other in headers if other not in (key, "classes")}
        suspects = [other for other in others if headers[other].shape[:1] == images.shape[:1]]
        if suspects:
            raise InputError(
                f"{file}: labels: missing, but {', '.join(sorted(suspects))} may hold them; "
                f"expected the key labels with integers ({images.shape[0]},), or no such key "
                f"(its keys: {shown})"
            )
        return key, None
    found = headers[labels]
    if found.dtype.kind not in "iu" or found.shape != images.shape[:1]:
        raise InputError(
            f"{file}: {labels}: got {found}, expected integers ({images.shape[0]},), "
            "one for each image"
        )
    return key, labels


def _labels_and_names(
    archive: zipfile.ZipFile, label_key: str | None, headers: dict[str, Header], file: Path
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Return the labels and the names of the classes, None for what the file lacks."""
    labels = names = None
    if label_key:
        labels = _read(archive, label_key, headers, file)
    if "classes" in headers:
        header = headers["classes"]
        if header.dtype.kind != "U" or len(header.shape) != 1 or 0 in header.shape:
            raise InputError(f"{file}: classes: got {header}, expected strings")
        if header.shape[0] > MAX_CLASSES:
            raise InputError(f"{file}: classes: got {header}, expected at most {MAX_CLASSES}")
        names = _read(archive, "classes", headers, file).tolist()
        names = checked_classes(names, f"{file}: classes")
        if labels is None and len(names) > 1:
            raise InputError(f"{file}: labels: missing, expected them with {len(names)} classes")
    return labels, names


def _names_of_all(labels: np.ndarray, file: Path, key: str) -> tuple[str, ...]:
    """Return "0" to "K - 1" for labels of a training file, each of which has an image."""
    number = len(np.unique(labels))
    if (int(labels.min()), _largest(labels)) != (0, number - 1):
        raise InputError(
            f"{file}: {key}: got {number} different ones from {labels.min()} to {labels.max()}, "
            f"expected each of 0 to {number - 1}, or the key classes with a name for each label"
        )
    return tuple(map(str, range(number)))


def _names_in_training(
    train: Path, names: tuple[str, ...] | None, test: Path
) -> tuple[str, ...] | None:
    """Return the classes of the training file, which number the labels of both; `names` if none."""
    with _opened(train) as archive:
        headers = _headers(archive, train)
        label_key = _keys(headers, train)[1]
        labels, known = _labels_and_names(archive, label_key, headers, train)
    if labels is None:
        return names
    known = known or _names_of_all(labels, train, label_key)
    if names not in (None, known):
        raise InputError(f"{test}: classes: other names than in {train.name}, expected the same")
    return known


def _require_range(labels: np.ndarray, number: int, file: Path, key: str | None) -> None:
    if int(labels.min()) < 0 or _largest(labels) >= number:
        raise InputError(
            f"{file}: {key}: got {labels.min()} to {labels.max()}, expected 0 to {number - 1}"
        )


def _largest(labels: np.ndarray) -> int:
    return int(labels.max())  # Python's integers: 2**63 + 1 fits


# ------------------------------------------------------------------------------- the archive


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # which one depends on what is damaged
        raise InputError(f"{file}: not an .npz file, or a truncated one ({error})") from error
    with archive:
        yield archive


def _headers(archive: zipfile.ZipFile, file: Path) -> dict[str, Header]:
    """Return key -> what its header says; members that are no arrays have none."""
    headers = {}
    for member in archive.infolist():
        key, dot, suffix = member.filename.rpartition(".")
        if suffix != "npy" or not dot:
            continue
        if key in headers:
            raise InputError(f"{file}: {key}: is there twice, expected one")
        with _reading(file, key), archive.open(member) as content:
            head = BytesIO(content.read(HEAD))
            version = npy.read_magic(head)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, in_columns, dtype = read(head)
            header = Header(shape, dtype, head.tell(), in_columns)
            size = head.tell() + dtype.itemsize * int(np.prod(shape, dtype=object))
        if size != member.file_size and not dtype.hasobject:
            raise InputError(
                f"{file}: {key}: its header says {header}, expected {size} bytes where there are "
                f"{member.file_size}"
            )
        headers[key] = header
    return headers


def _read(archive: zipfile.ZipFile, key: str, headers: dict[str, Header], file: Path) -> np.ndarray:
    header = headers[key]
    count = int(np.prod(header.shape, dtype=object))
    require_memory(header.dtype.itemsize * count, f"{file}: {key}: {header}")
    with _reading(file, key), archive.open(f"{key}.npy") as content:
        return npy.read_array(content, allow_pickle=False)


@contextmanager
def _reading(file: Path, key: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # which one depends on what is damaged, encrypted or unknown
        raise InputError(f"{file}: {key}: cannot be read ({error})") from error
