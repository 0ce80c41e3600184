"""Whether images are held in memory or read from disk, and the file beside a source for that."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
import PIL
import torch
from tqdm import tqdm

from convnorm.experiment.data import picture, pixels
from convnorm.experiment.data.pixels import RESIZED_BY, Size, height_and_width, size_text
from convnorm.experiment.data.stored import ImageFile
from convnorm.experiment.data.storing import Building, stored
from convnorm.experiment.errors import InputError
from convnorm.experiment.memory import available_bytes

Stream = Literal["auto", "memory", "disk"]
IsLarge = Callable[[int], bool]  # bytes of images -> whether they are read from disk
SHARE = 1 / 2  # of the free memory; scores read real images again, and networks need some too
# An image (C, H, W) uint8, and its height and width before it was resized.
Resized = tuple[np.ndarray, tuple[int, int]]


def is_large(stream: Stream, device: torch.device, num_bytes: int) -> bool:
    """Whether images of so many bytes are to be read from disk; `auto` asks how much is free.

    device: where they would be.
    """
    if stream != "auto":
        return stream == "disk"
    free = available_bytes()
    if device.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return num_bytes > SHARE * free


def kept_beside(
    source: Path,
    part: str,
    listed: object,
    size: Size,
    read: Callable[[int], Iterable[Resized]],
    labels: np.ndarray,
    classes: tuple[str, ...],
) -> ImageFile:
    """Return a source's images of `size` in the hidden file beside it, made where it has to be.

    source: the file, or the folder, where they are. part: of a folder of several. listed: what
        tells other images behind the same path, ready for JSON.
    read: gives the images from a number on, resized. labels, classes: of all of them.

    Raises InputError where the file cannot be written, and what `read` raises.
    """

    def build(building: Building) -> None:
        num, done = len(labels), building.done
        bar = tqdm(desc="reading images", total=num, initial=done, disable=None, leave=False)
        with bar:
            for image, native in read(done):
                building.add(image, native)
                bar.update()
        building.finish(labels, classes, f"{source}, {RESIZED_BY}")

    file, sides = file_beside(source, part, size), height_and_width(size)
    return stored(file, hash_of(listed, size), len(labels), sides, build)


def file_beside(source: Path, part: str, size: Size) -> Path:
    """Return where the file is: hidden, with the part and the size in its name."""
    path = Path(os.path.abspath(source))
    return path.with_name(".".join(["", path.name, *filter(None, [part]), size_text(size), "npy"]))


def status_of(files: Sequence[Path], base: Path) -> list[tuple[str, int, int]]:
    """Return the name below `base`, the length and the time of the last change of each file.

    Raises InputError for one that cannot be read.
    """
    found = []
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror})") from None
        found.append((os.path.relpath(file, base), status.st_size, status.st_mtime_ns))
    return found


def hash_of(*depends_on: object) -> str:
    """Return a hash of what images in a file follow from, with all that makes them of it."""
    makers = PIL.__version__, str(torch.__version__), code_of(picture), code_of(pixels)
    return hashlib.sha256(json.dumps([depends_on, makers]).encode()).hexdigest()


def code_of(module: ModuleType) -> str:
    """Return the code of a module, for `hash_of`."""
    return Path(module.__file__).read_text()
