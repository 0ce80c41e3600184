"""Images in an LMDB as LSUN's: each value is an encoded image."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convnorm.experiment.data.preparing.optional import imported
from convnorm.experiment.data.preparing.parts import PER_PART, Source
from convnorm.experiment.data.stream import status_of
from convnorm.experiment.errors import InputError

FILE = "data.mdb"


@dataclass(frozen=True)
class Values:
    """The images under some keys."""

    folder: Path
    keys: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def contents(self) -> Iterator[tuple[str, bytes | InputError]]:
        with _opened(self.folder) as environment, environment.begin(buffers=False) as reading:
            for key in self.keys:
                name = f"{self.folder}: {key.decode('ascii', 'backslashreplace')}"
                content = reading.get(key)
                if content is None:
                    content = InputError(f"{name}: is not there any more")
                yield name, content


def lsun_source(folder: Path) -> Source:
    """Find the images of an LMDB, in the order of keys; they are of one class.

    Raises InputError where lmdb is not installed, or there is none or an empty one.
    """
    with _opened(folder) as environment, environment.begin() as reading:
        keys = list(reading.cursor().iternext(keys=True, values=False))
    if not keys:
        raise InputError(f"{folder}: no images in it; expected LSUN's LMDB")
    starts = range(0, len(keys), PER_PART)
    parts = [Values(folder, tuple(keys[start : start + PER_PART])) for start in starts]
    labels = np.zeros(len(keys), np.int64)
    return Source(parts, labels, ("all",), "an LMDB", status_of([folder / FILE], folder))


def _opened(folder: Path) -> Any:
    lmdb = imported("lmdb", "lmdb", folder)
    try:
        return lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
    except Exception as error:  # which one depends on what is damaged
        raise InputError(f"{folder}: cannot be read as an LMDB ({error})") from None
