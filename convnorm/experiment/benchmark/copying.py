"""Copies a folder so that after a kill there is all of it or nothing."""

import os
import re
import shutil
from pathlib import Path

from convnorm.experiment.errors import InputError


def is_used(folder: Path) -> bool:
    """Whether a folder holds anything but hidden files, or its place is taken by something else."""
    if not os.path.lexists(folder):
        return False
    return not folder.is_dir() or any(not name.startswith(".") for name in os.listdir(folder))


def copy_folder(source: Path, to: Path) -> None:
    """Copy a folder without its hidden files under a temporary name, and rename it.

    Raises InputError where the disk is full or refuses; then, and after a Ctrl-C, nothing is left
    of the new folder. `to` holds nothing but hidden files, which go.
    """
    temporary = to.parent / f".{to.name}.copy"
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # what a kill has left
        to.parent.mkdir(parents=True, exist_ok=True)
        hidden = shutil.ignore_patterns(".*")
        shutil.copytree(source, temporary, ignore=hidden, copy_function=_copy_file)
        if to.is_dir():
            shutil.rmtree(to)
        os.rename(temporary, to)
    except (OSError, KeyboardInterrupt) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt):
            raise
        reason = getattr(error, "strerror", None) or _first_reason(error)
        raise InputError(f"{to}: cannot be copied from {source} ({reason})") from None


def _copy_file(source: str, to: str) -> None:
    """Copy a file, and have it on the disk before the folder gets its name."""
    shutil.copyfile(source, to)
    with open(to, "rb") as file:
        os.fsync(file.fileno())


def _first_reason(error: OSError) -> str:
    """What shutil.Error, which gathers the errors of all files, says of the first."""
    said = str(error.args[0][0][-1]) if error.args and error.args[0] else str(error)
    return re.sub(r"^\[Errno \d+\] ", "", said)
