"""Files that are replaced as a whole: after a kill there is the old one or the new one."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from convnorm.experiment.errors import InputError


def write(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under a temporary name and rename it: the old one stays until then.

    fill: is called with the open file. Raises InputError when the disk is full or refuses. Then,
    and after a Ctrl-C, nothing is left of the new file.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, KeyboardInterrupt) as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); what was there before is untouched"
        ) from None


def require_new_folder(folder: Path, option: str) -> None:
    """Raise an InputError, which names `option`, unless nothing or an empty folder is there."""
    if folder.is_dir():
        if any(folder.iterdir()):
            raise InputError(
                f"{option}: {folder} is not empty; expected a new folder or an empty one"
            )
    elif os.path.lexists(folder):
        raise InputError(f"{option}: {folder} is there already; expected a new name")


@contextmanager
def new_folder(folder: Path, option: str) -> Iterator[Path]:
    """Give a folder to fill, which gets the name `folder` when it is full, and never before.

    option: what the error names. Raises InputError where something is there, or it cannot be
    written; then, and after a Ctrl-C, nothing is left of what was written.
    """
    require_new_folder(folder, option)
    folder, unfinished = folder.resolve(), None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        unfinished.chmod(0o755)
        yield unfinished
        os.replace(unfinished, folder)
    except OSError as error:
        raise InputError(f"{option}: {folder} cannot be written ({error.strerror})") from None
    finally:
        if unfinished is not None:  # gone already, if all went well
            shutil.rmtree(unfinished, ignore_errors=True)


def make_folder(folder: Path, option: str) -> None:
    """Make a folder, with those above it, unless it is there; InputError that names `option`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option}: {folder} cannot be made a folder ({error.strerror})") from None


def read(path: Path, expected: str = "one that can be read") -> bytes:
    """Return the content of a file.

    expected: what the error says should be there. Raises InputError for what cannot be read, for a
    link to nothing, and for a pipe or a socket, which could wait for ever.
    """
    try:
        if os.path.lexists(path) and not path.is_file():
            raise InputError(f"{path}: not a file; expected {expected}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected {expected}") from None


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    write(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))
