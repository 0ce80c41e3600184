"""Finds the file of a split, .npz or another, by the words of its name."""

from pathlib import Path
from typing import get_args

from convnorm.experiment.data.images import NoSplit, Skipped
from convnorm.experiment.data.split_names import Kind, Split, counterpart, kinds
from convnorm.experiment.errors import InputError

SUFFIXES = {"npz": ".npz", "prepared": ".npy"}  # name of data that are files -> theirs


def split_file(root: Path, split: Split | None, suffix: str) -> tuple[Path, list[Skipped]]:
    """Return a split's file, and what else of a folder is not read.

    suffix: of such files, as ".npz".

    `root` is a file: it holds the training images, unless its name has the word test; the test
    images are in the file beside it whose name has that word in place of train. Or a folder: its
    file whose name has the word. Words end at digits and marks, so `latest` is none; `training` and
    `testing` are such words too, in any case.

    Raises:
        NoSplit: There is no such file.
        InputError: It is not clear which file it is, or one would serve both splits.
    """
    if root.is_dir():
        return _file_in(root, split, suffix)
    if not root.is_file():
        raise InputError(f"data.root: {root} does not exist")
    of = None if split is None else _kind(root)
    if of == split or (of is None and split == "train"):
        return root, []
    if split == "train":
        raise NoSplit(f"{root}: its name says that it holds {of} images, expected training images")
    if of != "train":
        raise NoSplit(
            f"{root}: no test images: its name lacks the word 'train', to put 'test' for it"
        )
    found = [path for path in _beside(root) if _kind(path) == "test"]
    if not found:
        raise NoSplit(
            f"{root}: no test images: no file beside it has its name with 'test' for 'train'"
        )
    return _the_one(found, root.parent, "test", suffix), []


def _file_in(root: Path, split: Split | None, suffix: str) -> tuple[Path, list[Skipped]]:
    entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    files = [path for path in entries if path.suffix.lower() == suffix]
    of = {path: _kind(path) for path in files}
    found = [path for path in files if of[path] == split]
    if not found:
        names = ", ".join(path.name for path in files) or "none"
        raise NoSplit(f"{root}: expected one {suffix} file with the word {split!r}, found {names}")
    others = [path for path in entries if of.get(path) not in get_args(Split)]
    return _the_one(found, root, split, suffix), [Skipped("other", path.name) for path in others]


def _the_one(found: list[Path], folder: Path, split: Split, suffix: str) -> Path:
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(
            f"{folder}: expected one {suffix} file with the word {split!r}, found {names}"
        )
    return found[0]


def _kind(path: Path) -> Kind | None:
    """Return the kind of split that a file's name speaks of."""
    found = kinds(path.stem)
    if len(found) > 1:
        raise InputError(
            f"{path}: its name speaks of {' and of '.join(sorted(found))} images, expected one"
        )
    return next(iter(found), None)


def _beside(file: Path) -> list[Path]:
    """Return the files beside one, and itself, whose names differ in the word of the split."""
    same = counterpart(file.name)
    return sorted(p for p in file.parent.iterdir() if counterpart(p.name) == same and p.is_file())


def train_file(root: Path, test: Path) -> Path | None:
    """Return the file of the training images that belong to `test`; None where there is none."""
    paths = root.glob(f"[!.]*{test.suffix}") if root.is_dir() else _beside(test)
    found = [path for path in paths if _kind(path) == "train"]
    for path in found:
        if path.samefile(test):
            raise InputError(f"{test}: is the same file as {path.name}, expected other images")
    return found[0] if len(found) == 1 else None
