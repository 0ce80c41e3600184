"""Images in tar files as WebDataset has them: the members of a sample share the name up to a dot.

`0007.jpg` and `0007.cls`, or `0007.json`, are one sample. Members are read where they lie, and
nothing is unpacked: the name of a member leads nowhere.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from convnorm.experiment.data.preparing.parts import (
    Source,
    Span,
    in_parts,
    numbered,
)
from convnorm.experiment.data.stream import status_of
from convnorm.experiment.errors import InputError

IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "bmp", "gif", "tif", "tiff")
LABELS = ("cls", "json")
JSON_KEYS = ("cls", "label")  # that hold a label
MOST_BYTES = 2**20  # of a label


def tar_source(files: Sequence[Path]) -> Source:
    """Find the images of shards, in the order of files and members.

    Labels are whole numbers in .cls, or under `cls` or `label` in .json; all samples have one, or
    none has. Members of other suffixes are skipped and counted.

    Raises:
        InputError: A file is no tar or a compressed one, a sample has no image or two, or some
            samples have a label that others lack.
    """
    spans, labels, skipped = [], [], 0
    for file in tqdm(files, desc="reading shards", disable=None, leave=False):
        for key, members in _samples(file):
            images = [(name, member) for name, member in members if _suffix(name) in IMAGES]
            given = [(name, member) for name, member in members if _suffix(name) in LABELS]
            skipped += len(members) - len(images) - len(given)
            if len(images) != 1:
                names = ", ".join(name for name, _ in images) or "none"
                raise InputError(f"{file}: {key}: has the images {names}; expected one")
            name, member = images[0]
            spans.append(Span(f"{file}: {name}", str(file), member.offset_data, member.size))
            labels.append(_label(file, given))
    if not spans:
        raise InputError(f"{files[0]}: no images in it; expected members such as 0001.jpg")
    missing = [span.name for span, label in zip(spans, labels, strict=True) if label is None]
    if 0 < len(missing) < len(spans):
        raise InputError(
            f"{missing[0]}: has no label, as {len(missing)} of {len(spans)}; expected a .cls or "
            ".json beside each image or beside none"
        )
    numbers, classes = (np.zeros(len(spans), np.int64), ("all",)) if missing else numbered(labels)
    found = f"{len(files)} shards" + (f" ({skipped} other members skipped)" if skipped else "")
    return Source(in_parts(spans), numbers, classes, found, status_of(files, files[0].parent))


Member = tuple[str, tarfile.TarInfo]


def _samples(file: Path) -> Iterator[tuple[str, list[tuple[str, tarfile.TarInfo]]]]:
    """Give the key of each sample with its members, each of which has its name."""
    last, members = None, []
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if not member.isfile() or name.startswith("."):
                    continue
                if member.issparse():
                    raise InputError(f"{file}: {member.name}: is sparse; expected a plain member")
                key = f"{folder}/{name.split('.')[0]}"
                if key != last and members:
                    yield last.removeprefix("/"), members
                    members = []
                last = key
                members.append((member.name, member))
                archive.members = []  # or it keeps them all
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(
            f"{file}: cannot be read as a tar file that is not compressed ({error})"
        ) from None
    if members:
        yield last.removeprefix("/"), members


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _label(file: Path, given: list[Member]) -> int | None:
    """Return the label of a sample; None where nothing holds one."""
    found = []
    for name, member in given:
        if member.size > MOST_BYTES:
            raise InputError(f"{file}: {name}: has {member.size} bytes; expected a label")
        with file.open("rb") as content:
            content.seek(member.offset_data)
            text = content.read(member.size)
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if _suffix(name) == "json" and isinstance(value, dict):
            known = [value[key] for key in JSON_KEYS if key in value]
            if not known:
                continue
            value = known[0]
        if type(value) is not int or not 0 <= value < 2**31:
            raise InputError(f"{file}: {name}: {text[:40]!r}; expected a label, 0 or more")
        found.append(value)
    if len(set(found)) > 1:
        raise InputError(f"{file}: {given[0][0]}: labels {found}; expected one")
    return found[0] if found else None
