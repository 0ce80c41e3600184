"""Reads a folder of images, in class folders or not, and accounts for every entry in it."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from convnorm.experiment.data.image_files import each, read_into_memory
from convnorm.experiment.data.images import (
    Images,
    NoSplit,
    Skipped,
    checked_classes,
    class_name,
    images_of,
    said,
)
from convnorm.experiment.data.pixels import Size, height_and_width
from convnorm.experiment.data.split_names import Kind, Split, folder_kind, kinds
from convnorm.experiment.data.stored import RGB, StoredImages
from convnorm.experiment.data.stream import IsLarge, kept_beside, status_of
from convnorm.experiment.errors import InputError

SYSTEM = {
    *("@eadir", "__macosx", "__pycache__", "lost+found", "#recycle", "#snapshot"),
    *("$recycle.bin", "system volume information"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
}
TEXT_NAMES = {"readme", "license", "licence", "copying", "changelog", "authors", "notice"}
TEXT_SUFFIXES = {
    *(".txt", ".md", ".rst", ".log", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml"),
    *(".html", ".htm", ".bib", ".md5", ".sha256"),
}


@dataclass(frozen=True)
class Entries:
    """What is in a folder: each entry is in one of the three."""

    folders: list[Path]
    files: list[Path]
    skipped: list[Skipped]


def read_folder(root: Path, split: Split | None, size: Size | None, is_large: IsLarge) -> Images:
    """Read root/<split>/<class>/, root/<split>/, root/<class>/ or root/, in the order of names.

    Every entry is read, skipped or refused by name. Skipped are, and `Images.found` says so:
    hidden entries (`.` at the start), those of the system (`SYSTEM`), texts (`TEXT_NAMES` and
    `TEXT_SUFFIXES`), and folders of another split. Every other file must be an image that
    `read_picture` reads, whatever its suffix, and every other folder a class.

    The splits are folders called train and test. Beside them, a folder of validation images is
    skipped, and no other may be: a class of such a name has to be renamed. Other names of splits,
    in any case (Train, testing, val2017, valid, train_images), are refused, and never classes.

    Args:
        split: None takes the images of a root without splits.
        size: To which each image is resized as it is read; images may then be of several sizes,
            but of one shape. None leaves them as they are, in memory, and expects one size.
        is_large: Whether images of so many bytes are read from a file beside `root`.

    Raises:
        InputError: An entry can be neither read nor skipped, a class has no image or is in one of
            the splits alone, or an image is of another shape, or size, than asked for.
    """
    base, beside = split_folder(root, split)
    paths, labels, classes, within = files_of(base)
    if size is not None and is_large(len(paths) * RGB * math.prod(height_and_width(size))):
        listed = status_of(paths, base)
        file = kept_beside(
            root,
            split or "",
            listed,
            size,
            lambda start: each(paths[start:], size),
            labels,
            classes,
        )
        images, native = StoredImages(file), file.about.native_sizes
    else:
        images, native = read_into_memory(paths, size)
    skipped = _below([*beside, *within], root)
    return images_of(images, labels, classes, native, base, skipped)


def files_of(base: Path) -> tuple[list[Path], np.ndarray, tuple[str, ...], list[Skipped]]:
    """Return the image files of a split's folder, the label of each, the classes, and the rest."""
    entries = entries_of(base)
    _refuse_mixtures(base, entries)
    classes = _class_names(entries.folders, base) or ("all",)
    parts = [_class_entries(folder) for folder in entries.folders] or [entries]
    for folder, part in zip(entries.folders or [base], parts, strict=True):
        if not part.files:
            raise InputError(f"{folder}: no images in it{said(_below(part.skipped, folder))}")
    paths = [path for part in parts for path in part.files]
    labels = np.repeat(np.arange(len(parts)), [len(part.files) for part in parts])
    within = [each for part in parts for each in part.skipped] if entries.folders else []
    return paths, labels, classes, [*entries.skipped, *within]


def split_folder(root: Path, split: Split | None) -> tuple[Path, list[Skipped]]:
    """Return the folder of a split and what lies beside it; test images are never training images.

    Raises:
        NoSplit: There is no folder of that split.
        InputError: `root` is no folder, or which of its folders is which split is not clear.
    """
    if not root.is_dir():
        raise InputError(f"data.root: {root} is not a folder")
    entries = entries_of(root)
    kind_of = {path: kind for path in entries.folders if (kind := folder_kind(path.name))}
    if not kind_of:
        _refuse_hidden_splits(root, entries.folders)
        if split == "test":
            raise NoSplit(f"{root}: no folder 'test' in it, so it has no test images")
        return root, []
    _refuse_unclear_splits(root, entries, kind_of)
    if split is None:
        raise InputError(f"{root}: has splits, expected the one that is wanted")
    train, test, wanted = root / "train", root / "test", root / split
    if wanted not in kind_of:
        raise NoSplit(
            f"{root}: no folder {split!r} in it, so it has no {split} images (it has "
            f"{', '.join(path.name for path in kind_of)})"
        )
    if train in kind_of and test in kind_of:
        _require_equal_classes(root, train, test)
    unread = [Skipped("validation", str(path)) for path in kind_of if path not in (train, test)]
    return wanted, [*entries.skipped, *unread]


def has_splits(root: Path) -> bool:
    """Whether any folder in `root` has a name that stands for a split."""
    return any(folder_kind(path.name) for path in entries_of(root).folders)


def entries_of(folder: Path) -> Entries:
    """List a folder, files by their names and folders by those of classes.

    Raises InputError for what is neither a folder nor a file, by its name.
    """
    found = Entries([], [], [])
    try:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = Path(entry.path)
            if why := _skipped_as(entry):
                found.skipped.append(Skipped(why, str(path)))
            elif entry.is_dir():
                found.folders.append(path)
            elif entry.is_file():
                found.files.append(path)
            else:
                state = "a link that leads nowhere" if entry.is_symlink() else "no regular file"
                raise InputError(f"{path}: is {state}, expected an image or a folder")
        found.folders.sort(key=lambda path: class_name(path.name))  # which numbers the labels
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    return found


def _class_entries(folder: Path) -> Entries:
    entries = entries_of(folder)
    if entries.folders:
        raise InputError(
            f"{entries.folders[0]}: a folder below the class folder {folder.name!r}; expected "
            "images only, or data.root with the class folders directly in it"
        )
    return entries


def _refuse_mixtures(base: Path, entries: Entries) -> None:
    """Refuse images beside class folders, and folders of splits in place of classes."""
    if entries.folders and entries.files:
        raise InputError(
            f"{base}: holds images and folders ({entries.files[0].name!r} beside "
            f"{entries.folders[0].name!r}), expected images or class folders"
        )
    splits = [folder.name for folder in entries.folders if folder_kind(folder.name)]
    if splits and len(splits) == len(entries.folders):
        raise InputError(
            f"{base}: holds only folders of splits ({', '.join(splits)}), expected classes"
        )


def _below(skipped: Sequence[Skipped], folder: Path) -> list[Skipped]:
    """Return the same with names as seen from `folder`."""
    return [Skipped(each.why, os.path.relpath(each.name, folder)) for each in skipped]


def _skipped_as(entry: os.DirEntry) -> str | None:
    """Return the rule by which an entry is skipped; None where it has to be read."""
    name = entry.name.lower()
    if name.startswith("."):
        return "hidden"
    if name in SYSTEM:
        return "of the system"
    is_text = name in TEXT_NAMES or os.path.splitext(name)[1] in TEXT_SUFFIXES
    return "text" if is_text and not entry.is_dir() else None


def _refuse_hidden_splits(root: Path, folders: Sequence[Path]) -> None:
    """Classes that speak of training and of test images, as in trainA and testA, are none."""
    spoken = {folder.name: kinds(folder.name) for folder in folders}
    if "train" in set().union(*spoken.values()) and set().union(*spoken.values()) - {"train"}:
        names = ", ".join(name for name, of in spoken.items() if of)
        raise InputError(
            f"{root}: {names} read as splits, not as classes; expected folders called train and "
            "test, or classes of other names"
        )


def _refuse_unclear_splits(root: Path, entries: Entries, kind_of: dict[Path, Kind]) -> None:
    """Beside train and test stand no folders but of validation images, and no files."""
    known = [path for path in kind_of if path.name in get_args(Split)]
    beside = [path for path in kind_of if known and kind_of[path] == "validation"]
    if odd := [path.name for path in kind_of if path not in (*known, *beside)]:
        raise InputError(
            f"{root}: {', '.join(odd)} read as splits, not as classes; expected them to be called "
            f"train and test, or a class to be renamed, as to class_{odd[0]}"
        )
    others = [path.name for path in (*entries.folders, *entries.files) if path not in kind_of]
    if others:
        splits = ", ".join(path.name for path in kind_of)
        shown = ", ".join(others[:5]) + ", ..." * (len(others) > 5)
        raise InputError(
            f"{root}: {splits} read as splits, and beside them are {shown}; expected splits only. "
            f"Rename a class, as to class_{known[0].name}, or move away what is no split"
        )
    if len(known) > 1 and known[0].samefile(known[1]):
        raise InputError(f"{root}: train and test are one folder, expected other images to test on")


def _require_equal_classes(root: Path, train: Path, test: Path) -> None:
    """A class that one split lacks would shift the labels of the others."""
    in_train, in_test = (_class_names(entries_of(split).folders, split) for split in (train, test))
    if odd := sorted(set(in_train) ^ set(in_test)):
        raise InputError(
            f"{root}: classes in only one of {train.name} and {test.name}: {', '.join(odd)}"
        )


def _class_names(folders: Sequence[Path], base: Path) -> tuple[str, ...]:
    """Return the names of class folders; equal ones, and two names of one folder, are refused."""
    names = checked_classes([folder.name for folder in folders], base)
    seen: dict[tuple[int, int], Path] = {}
    for folder in folders:
        status = folder.stat()
        other = seen.setdefault((status.st_dev, status.st_ino), folder)
        if other != folder:
            raise InputError(f"{folder}: is the same folder as {other.name}, expected one class")
    return names
