"""One process at a time in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from convnorm.experiment.errors import InputError


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Make `folder` and keep every other process out of it.

    A folder that was made for what ends in an error, and holds nothing then, is removed again.

    option: the name of the option that gave the folder, for the error. Raises InputError if the
    folder cannot be used or another process holds it.
    """
    new = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        with _lock(folder, option):
            try:
                yield
            except BaseException:
                if new and os.listdir(folder) == [".lock"]:
                    (folder / ".lock").unlink()
                raise
    except BaseException:
        for path in new:
            with suppress(OSError):  # it holds something, or could not be made
                path.rmdir()
        raise


@contextmanager
def _lock(folder: Path, option: str) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _open_lock(folder, os.O_CREAT)
    except OSError as error:
        reason = "its .lock is a link" if os.path.islink(folder / ".lock") else error.strerror
        raise InputError(f"{option}: {folder} cannot be used ({reason})") from None
    with lock:  # the folder is free again when the file is closed, at the latest by a kill
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock.fileno()).st_nlink == 0:  # whoever held it has just removed it
                raise BlockingIOError
        except BlockingIOError:
            raise InputError(
                f"{option}: {folder} is in use by another process; expected another --{option}"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def _open_lock(folder: Path, flags: int = 0) -> IO[bytes]:
    """Open the file that is locked; never what a link leads to, and nothing in it changes."""
    return open(os.open(folder / ".lock", os.O_RDWR | os.O_NOFOLLOW | flags, 0o644), "r+b", 0)


def is_held(folder: Path) -> bool:
    """Whether another process holds `folder` now."""
    try:
        with _open_lock(folder) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # no folder yet, or a file system without locks
    return False
