"""Paths that a user gives."""

import os
from pathlib import Path

from convnorm.experiment.errors import InputError, shortened

LONGEST_NAME = 255  # bytes of one part of a path, on all usual file systems
LONGEST_PATH = 4095  # bytes, on Linux


def user_path(text: str | Path, key: str) -> Path:
    """Return what a user gave as a path, with `~` as the home folder.

    key: the option, for messages. Raises InputError for what no file system can hold: a user
    that does not exist, a NUL byte, a name of more than 255 bytes.
    """
    text = str(text)
    if "\0" in text:
        raise InputError(f"{key}: {shortened(repr(text))} has a NUL byte; expected a path")
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        user = text.split("/")[0]
        raise InputError(f"{key}: {shortened(text)}: there is no user {user[1:]!r}") from None
    too_long = any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts)
    if too_long or len(os.fsencode(path)) > LONGEST_PATH:
        raise InputError(
            f"{key}: {shortened(text)} is too long; expected at most {LONGEST_NAME} bytes a name "
            f"and {LONGEST_PATH} in all"
        )
    return path
